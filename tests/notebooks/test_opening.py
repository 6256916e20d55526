"""The setup cell, run in a real kernel: in a clone, and alone in an empty folder.

Alone, it clones this very checkout: git is told, by a configuration of the test's own,
to take it where the repository's address stands. pip finds what it is to install in
this environment already, and is kept from the network.
"""

import ast
import os
import re
import shutil
import subprocess

import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

from tools import ROOT
from tools.address import repository, setup_cell

SETUP = setup_cell("01_summary", repository())
VERSIONS = """\
from importlib.metadata import version
[version(name) for name in ("torch", "numpy")]"""
STATE = """\
import helpers.models
[os.getcwd(), sys.path[0], helpers.models.__file__, LESSON]"""
LISTEN = """\
import sys

def listen(event, _, started=(started := [])):
    if event in ("subprocess.Popen", "os.system", "os.fork", "os.forkpty"):
        started.append(event)

sys.addaudithook(listen)"""


@pytest.fixture
def environment(tmp_path):
    """The kernel's environment: git finds this checkout, pip no index."""
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f'[url "{ROOT.as_uri()}"]\n\tinsteadOf = {repository()}\n'
        # A checkout that belongs to someone else, as in a container, will do.
        "[safe]\n\tdirectory = *\n"
    )
    names = ("PYTHONPATH", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    plain = {key: value for key, value in os.environ.items() if key not in names}
    return plain | {"GIT_CONFIG_GLOBAL": str(settings), "PIP_NO_INDEX": "1"}


@pytest.fixture
def empty(tmp_path):
    folder = tmp_path / "content"
    folder.mkdir()
    return folder


def run(folder, environment, *sources):
    """Run cells in a fresh kernel there; returns their values, and all they printed."""
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    client = NotebookClient(notebook, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    values = [
        ast.literal_eval(output.data["text/plain"])
        for output in outputs
        if output.output_type == "execute_result"
    ]
    printed = [output.text for output in outputs if output.output_type == "stream"]
    return values, "".join(printed)


def is_course(state, course):
    """Whether the kernel stands in the course's notebooks/ and imports its helpers."""
    models = course / "helpers" / "models.py"
    return state == [
        *(str(course / "notebooks"), str(course), str(models)),
        "01_summary",
    ]


@pytest.fixture
def with_lessons(environment):
    """A clone holds what is committed; with no lesson there is no notebooks/ in it."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone, as a downloaded archive is none")
    committed = subprocess.run(
        ["git", "-C", ROOT, "ls-tree", "HEAD", "notebooks/"],
        env=environment,
        capture_output=True,
        check=True,
    ).stdout
    if not committed:
        pytest.skip("no lesson is committed yet")


@pytest.mark.usefixtures("with_lessons")
def test_alone_it_clones_the_course(empty, environment):
    cells = [VERSIONS, SETUP, STATE, VERSIONS, SETUP, STATE]
    (before, state, after, again), printed = run(empty, environment, *cells)
    assert is_course(state, empty / "course"), printed
    assert is_course(again, empty / "course"), "a second run is harmless"
    assert before == after
    assert [path.name for path in empty.iterdir()] == ["course"]
    assert "cp:" not in printed


@pytest.mark.usefixtures("with_lessons")
def test_after_a_restart_it_uses_the_course_that_is_there(empty, environment):
    run(empty, environment, SETUP)
    (empty / "course" / "mine.txt").touch()
    gone = environment | {"GIT_CONFIG_GLOBAL": os.devnull}
    (state,), printed = run(empty, gone, SETUP, STATE)
    assert is_course(state, empty / "course"), printed
    assert (empty / "course" / "mine.txt").exists()


def drive_copy(empty):
    copy = empty / "drive" / "MyDrive" / "pytorch-models-course"
    shutil.copytree(ROOT / "helpers", copy / "helpers")
    (copy / "notebooks").mkdir()
    (copy / "mine.txt").touch()
    return copy


def test_alone_it_prefers_a_copy_in_drive(empty, environment):
    drive_copy(empty)
    (state,), printed = run(empty, environment, SETUP, STATE)
    assert is_course(state, empty / "course"), printed
    assert (empty / "course" / "mine.txt").exists()


def test_a_copy_broken_off_is_not_trusted(empty, environment, tmp_path):
    copy = drive_copy(empty)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "cp").write_text('#!/bin/sh\nmkdir "$3" && touch "$3/half"\nexit 1\n')
    (tools / "cp").chmod(0o755)
    broken = environment | {"PATH": f"{tools}{os.pathsep}{environment['PATH']}"}
    with pytest.raises(CellExecutionError, match="FileNotFoundError"):
        run(empty, broken, SETUP)
    assert (empty / "new" / "half").exists()
    assert not (empty / "course").exists()

    (state,), printed = run(empty, environment, SETUP, STATE)
    assert is_course(state, empty / "course"), printed
    assert not list(empty.rglob("half"))
    assert copy.exists()


def test_a_failed_clone_says_so_and_leaves_nothing(empty, environment, tmp_path):
    absent = (tmp_path / "absent").as_uri()
    settings = tmp_path / "gitconfig"
    settings.write_text(f'[url "{absent}"]\n\tinsteadOf = {repository()}\n')
    with pytest.raises(CellExecutionError, match="FileNotFoundError"):
        run(empty, environment, SETUP)
    assert list(empty.iterdir()) == []


def test_in_a_clone_it_starts_nothing(environment):
    folder = ROOT / "notebooks"
    folder.mkdir(exist_ok=True)
    cells = [LISTEN, SETUP, SETUP, "len(started)", STATE]
    cells += ["started.clear()", "!true", "len(started)"]  # the listener does hear
    (by_setup, state, by_true), _ = run(folder, environment, *cells)
    assert is_course(state, ROOT)
    assert by_setup == 0
    assert by_true > 0


def names(text):
    return set(re.findall(r"(?m)^[a-z]+", text))


def test_pip_installs_what_colab_lacks_and_never_torch():
    (line,) = [line for line in SETUP.splitlines() if "%pip install" in line]
    installed = {word for word in line.split()[2:] if not word.startswith("-")}
    lessons, jupyter = (ROOT / "requirements.txt").read_text("utf-8").split("\n\n", 1)
    assert "# Jupyter" in jupyter
    colab, others = (ROOT / "constraints-colab.txt").read_text("utf-8").split("\n\n", 1)
    assert "# Not on Colab" in others
    lacking = names(lessons) - names(colab)
    assert lacking == {"torchinfo"}
    # Colab's torchsummary is no promise: its list has changed before.
    assert installed == lacking | {"torchsummary"}
    assert "--no-deps" in line
