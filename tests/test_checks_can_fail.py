"""The suite can fail: `make test` is green on a good lesson, and red on each fault.

The lesson is made and executed here, then checked by the commands of `make test` with
this repository's settings: pytest with strict nbval, and `tools.notebooks check`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import ROOT
from tools.address import badge, repository, setup_cell
from tools.notebooks import METADATA, clean

PYTEST, CHECK = ["-m", "pytest"], ["-m", "tools.notebooks", "check"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A small lesson as its author leaves it: executed, and cleaned."""
    folder = tmp_path_factory.mktemp("course") / "notebooks"
    folder.mkdir()
    (folder.parent / "helpers").mkdir()  # to the setup cell, this is a clone
    cells = [
        new_markdown_cell(f"# Halves\n\n{badge('halves', repository())}", id="title"),
        new_code_cell(setup_cell(repository()), id="setup"),
        new_code_cell("half = 1 / 2\nhalf", id="value"),
        new_code_cell("half + half", id="sum"),
        new_code_cell("print(COURSE)", id="printed"),
        new_code_cell("assert half + half == 1", id="claim"),
    ]
    notebook = new_notebook(metadata=METADATA, cells=cells)
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}).execute()
    nbformat.write(notebook, folder / "halves.ipynb")
    clean(folder / "halves.ipynb")
    return folder.parent


@pytest.fixture
def lesson(executed, tmp_path):
    """A copy of it to be broken."""
    shutil.copytree(executed, tmp_path / "course")
    return tmp_path / "course" / "notebooks" / "halves.ipynb"


def run(command, path, *options):
    """The exit status and what was printed."""
    # The pytest around this one hands its options and its worker's name down.
    plain = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    if command == PYTEST:
        command = [*PYTEST, "-c", ROOT / "pyproject.toml", "--rootdir", ROOT]
        command += ["-p", "no:cacheprovider"]
    ran = subprocess.run(
        [sys.executable, *map(str, command), *options, str(path)],
        cwd=ROOT,
        env=plain,
        capture_output=True,
        text=True,
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_a_good_lesson_is_green(lesson):
    code, printed = run(PYTEST, lesson)
    assert code == 0, printed
    assert "5 passed" in printed
    code, printed = run(CHECK, lesson)
    assert code == 0, printed


def break_lesson(lesson):
    """Fault after fault, the last of them an error."""
    notebook = nbformat.read(lesson, as_version=4)
    cells = {cell.id: cell for cell in notebook.cells}
    cells["value"].outputs[0].data["text/plain"] = "0.6"
    cells["sum"].outputs = []
    cells["printed"].outputs[0].text = "elsewhere\n"
    cells["claim"].source = "assert half + half == 2"
    nbformat.write(notebook, lesson)


def test_what_is_not_as_stored_is_red(lesson):
    break_lesson(lesson)
    code, printed = run(PYTEST, lesson)
    assert code == 1, printed
    assert "4 failed, 1 passed" in printed


def test_on_gpus_an_output_may_differ_and_an_error_may_not(lesson):
    """`make test-gpu` runs nbval lax."""
    break_lesson(lesson)
    code, printed = run(PYTEST, lesson, "--nbval-lax")
    assert code == 1, printed
    assert "1 failed, 4 passed" in printed
    assert "AssertionError" in printed


def test_a_cell_not_executed_is_red(lesson):
    # nbval lets this one pass: it compares nothing with a cell that was never run.
    notebook = nbformat.read(lesson, as_version=4)
    notebook.cells[-1].execution_count = None
    nbformat.write(notebook, lesson)
    code, printed = run(CHECK, lesson)
    assert code == 1, printed
    assert "halves: claim: not executed" in printed


TESTS = """
import os
from pathlib import Path

import pytest

def test_folder():
    folder = os.environ["COURSE_CHECKPOINTS"]
    assert Path(folder).is_dir()
    print("folder", folder, end=";")

@pytest.mark.upstream
def test_canary():
    test_folder()
    raise AssertionError
"""


def test_checkpoints_are_the_runs_own_and_canaries_stay_out(monkeypatch):
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        monkeypatch.setenv("COURSE_CHECKPOINTS", f"{folder}/a learner's")
        file = Path(folder) / "test_one.py"
        file.write_text(TESTS)
        # In one of xdist's processes, and in pytest's own
        code, first = run(PYTEST, file, "-n1", "-rP")
        assert code == 0, first
        assert "1 passed" in first
        code, second = run(PYTEST, file, "-m", "upstream")
        assert code == 1
        assert "1 failed, 1 deselected" in second
    used = {text.split("folder ")[-1].split(";")[0] for text in (first, second)}
    assert len({*used, f"{folder}/a learner's"}) == 3
    assert not any(Path(name).exists() for name in used), "gone with the run"
