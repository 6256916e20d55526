"""The suite can fail: `make test` is green on a good lesson, and red on each fault.

The lesson is made and executed here, then checked by the commands of `make test` with
this repository's settings: pytest with strict nbval, and `tools.notebooks check`.
"""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import ROOT
from tools.address import badge, repository, setup_cell
from tools.notebooks import METADATA, clean

PYTEST = ["-m", "pytest"]
CHECK = ["-m", "tools.notebooks", "check"]


def test_these_are_the_commands_of_make_test():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = makefile.split("\ntest: setup")[1].split("\n\n")[0]
    assert " ".join(PYTEST) in recipe
    assert " ".join(CHECK) in recipe


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A small lesson as its author leaves it: executed, and cleaned."""
    folder = tmp_path_factory.mktemp("course") / "notebooks"
    folder.mkdir()
    (folder.parent / "helpers").mkdir()  # to the setup cell, this is a clone
    cells = [
        new_markdown_cell(f"# Halves\n\n{badge('halves', repository())}", id="title"),
        new_code_cell(setup_cell("halves", repository()), id="setup"),
        new_code_cell("half = 1 / 2\nhalf", id="take-half"),
        new_code_cell("assert half + half == 1\nprint(LESSON)", id="two-halves"),
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


def change(path, number, **what):
    """Set fields of the lesson's code cell of this number, the setup cell being 0."""
    notebook = nbformat.read(path, as_version=4)
    cell = [cell for cell in notebook.cells if cell.cell_type == "code"][number]
    cell.update(nbformat.from_dict(what))
    nbformat.write(notebook, path)


def run(command, path):
    """The exit status and what was printed."""
    # The pytest around this one hands its options and its worker's name down.
    plain = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    if command == PYTEST:
        settings = ROOT / "pyproject.toml"
        command = [
            *command,
            "-c",
            settings,
            "--rootdir",
            ROOT,
            "-p",
            "no:cacheprovider",
        ]
    ran = subprocess.run(
        [sys.executable, *map(str, command), str(path)],
        cwd=ROOT,
        env=plain,
        capture_output=True,
        text=True,
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_a_good_lesson_is_green(lesson):
    code, printed = run(PYTEST, lesson)
    assert code == 0, printed
    assert "3 passed" in printed
    code, printed = run(CHECK, lesson)
    assert code == 0, printed


def test_a_stored_output_altered(lesson):
    notebook = nbformat.read(lesson, as_version=4)
    notebook.cells[2].outputs[0].data["text/plain"] = "0.6"
    nbformat.write(notebook, lesson)
    code, printed = run(PYTEST, lesson)
    assert code == 1, printed
    assert "1 failed, 2 passed" in printed


def test_a_printed_output_altered(lesson):
    notebook = nbformat.read(lesson, as_version=4)
    notebook.cells[3].outputs[0].text = "thirds\n"
    nbformat.write(notebook, lesson)
    code, printed = run(PYTEST, lesson)
    assert code == 1, printed
    assert "1 failed, 2 passed" in printed


def test_a_stored_output_removed(lesson):
    change(lesson, 1, outputs=[])
    code, printed = run(PYTEST, lesson)
    assert code == 1, printed


def test_a_cell_broken(lesson):
    change(lesson, 1, source="half = 1 / 3\nhalf;")
    code, printed = run(PYTEST, lesson)
    assert code == 1, printed
    assert "AssertionError" in printed


def test_a_cell_not_executed(lesson):
    # nbval lets this one pass: it compares nothing with a cell that was never run.
    change(lesson, 2, execution_count=None, outputs=[])
    code, printed = run(CHECK, lesson)
    assert code == 1, printed
    assert "halves.ipynb: two-halves: not executed" in printed
