"""Settings of every run of the tests, the notebooks' own among them."""

import os
import tempfile
from pathlib import Path

import pytest

# The code of the lessons once more, which tests/tools/test_translate.py compares
collect_ignore = ["notebooks/ko"]
FOLDER = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config: pytest.Config) -> None:
    """Give the run folders, for checkpoints and temporary files, that no other run has.

    xdist's workers and the notebooks' kernels inherit the variables. nbval kills its
    kernels: what they had in TMPDIR, 2 GB in all, would stay.
    """
    if not hasattr(config, "workerinput"):
        config.stash[FOLDER] = folder = tempfile.TemporaryDirectory(prefix="course-")
        Path(folder.name).chmod(0o755)  # as /tmp: tests become another user
        for variable in ("COURSE_CHECKPOINTS", "TMPDIR"):
            os.environ[variable] = str(Path(folder.name, variable.lower()))
            Path(os.environ[variable]).mkdir()
        tempfile.tempdir = os.environ["TMPDIR"]


def pytest_unconfigure(config: pytest.Config) -> None:
    if folder := config.stash.get(FOLDER, None):
        folder.cleanup()
