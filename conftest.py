"""Settings of every run of the tests, the notebooks' own among them."""

import os
import tempfile

import pytest

FOLDER = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a folder for checkpoints that no other run and no learner has.

    xdist's workers and the notebooks' kernels inherit the variable.
    """
    if not hasattr(config, "workerinput"):
        config.stash[FOLDER] = folder = tempfile.TemporaryDirectory(prefix="course-")
        os.environ["COURSE_CHECKPOINTS"] = folder.name


def pytest_unconfigure(config: pytest.Config) -> None:
    if folder := config.stash.get(FOLDER, None):
        folder.cleanup()
