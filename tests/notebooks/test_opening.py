"""The setup cell, run in a real kernel: in a clone, and alone in an empty folder.

Alone, it clones this very checkout, of which a clone holds what is committed: git is
told, by a configuration of the test's own, to take it where the repository's address
stands. pip finds what it is to install in this environment already, and is kept from
the network.
"""

import ast
import os
import re
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from tools import ROOT, all_notebooks, lesson_name, read_notebook
from tools.address import repository, setup_cell

SETUP = setup_cell(repository())
VERSIONS = """\
from importlib.metadata import version
[version(name) for name in ("torch", "numpy")]"""
STATE = """\
sys.modules.pop("helpers", None)
import helpers
[COURSE, os.getcwd(), helpers.__path__[0]]"""
LISTEN = """\
import sys

def listen(event, _, started=(started := [])):
    if event in ("subprocess.Popen", "os.system", "os.fork", "os.forkpty"):
        started.append(event)

sys.addaudithook(listen)"""
NAME = "pytorch-models-course"
HERE = ROOT.as_uri()
needs_clone = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="this is no clone, as a downloaded archive"
)


def run(folder, *sources, clone_from=HERE):
    """Run cells in a fresh kernel there; returns their values, and all they printed.

    An error ends nothing: it is among the values, as "KeyError: 'absent'".
    """
    settings = folder.parent / "gitconfig"
    settings.write_text(
        f'[url "{clone_from}"]\n\tinsteadOf = {repository()}\n'
        # A checkout that belongs to someone else, as in a container, will do.
        "[safe]\n\tdirectory = *\n"
    )
    names = ("PYTHONPATH", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    plain = {key: value for key, value in os.environ.items() if key not in names}
    plain |= {"GIT_CONFIG_GLOBAL": str(settings), "PIP_NO_INDEX": "1"}
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, resources=resources, allow_errors=True).execute(env=plain)
    values, printed = [], ""
    for output in (output for cell in notebook.cells for output in cell.outputs):
        if output.output_type == "stream":
            printed += output.text
        elif output.output_type == "error":
            values.append(f"{output.ename}: {output.evalue}")
        elif output.output_type == "execute_result":
            values.append(ast.literal_eval(output.data["text/plain"]))
    return values, printed


@pytest.fixture
def empty(tmp_path):
    folder = tmp_path / "content"
    folder.mkdir()
    return folder


def found(folder, course):
    """What STATE shows in `folder` if the course was found at this path from there."""
    return [course, str(folder), str(folder / course / "helpers")]


def make_course(folder):
    """What the setup cell needs of a course."""
    (folder / "helpers").mkdir(parents=True)
    (folder / "helpers" / "__init__.py").touch()
    (folder / "requirements-colab.txt").write_text("torchinfo\n")


def test_in_a_clone_it_finds_the_course_from_every_folder_and_starts_nothing(tmp_path):
    course = tmp_path / "un cours à moi"
    make_course(course)
    cells = [LISTEN]
    for name in ("notebooks", "notebooks/deeper", "notebooks/ko"):
        (course / name).mkdir()
        cells += [f"import os; os.chdir({str(course / name)!r})", SETUP, SETUP, STATE]
    cells += ["len(started)", "!true", "len(started)"]  # the listener does hear
    (core, deeper, ko, by_setup, by_true), _ = run(course / "notebooks", *cells)
    for (relative, cwd, helpers), name, expected in (
        (core, "notebooks", ".."),
        (deeper, "notebooks/deeper", "../.."),
        (ko, "notebooks/ko", "../.."),
    ):
        assert (relative, cwd) == (expected, str(course / name))
        assert os.path.normpath(helpers) == str(course / "helpers")
    assert by_setup == 0
    assert by_true > 0


@needs_clone
def test_alone_it_clones_the_course_once(empty, tmp_path):
    cells = [VERSIONS, SETUP, STATE, VERSIONS, SETUP, STATE]
    (before, state, after, again), printed = run(empty, *cells)
    assert state == again == found(empty, NAME), printed
    assert before == after
    assert [path.name for path in empty.iterdir()] == [NAME]

    (empty / NAME / "mine.txt").touch()  # after a restart, with no network
    (state,), printed = run(empty, SETUP, STATE, clone_from="file:///absent")
    assert state == found(empty, NAME), printed
    assert (empty / NAME / "mine.txt").exists()


def test_alone_it_prefers_a_copy_in_drive(empty):
    make_course(empty / "drive" / "MyDrive" / NAME)
    (state,), printed = run(empty, SETUP, STATE, clone_from="file:///absent")
    assert state == found(empty, f"drive/MyDrive/{NAME}"), printed
    assert [path.name for path in empty.iterdir()] == ["drive"]


def test_a_failed_clone_says_so_and_leaves_nothing(empty):
    _, printed = run(empty, SETUP, clone_from="file:///absent")
    assert "fatal: '/absent' does not appear to be a git repository" in printed
    assert list(empty.iterdir()) == []


@needs_clone
def test_every_lesson_opens_alone(empty):
    """Its first two code cells, setup and imports, with no other file of the course."""
    cells = {}
    for file in all_notebooks():
        code = [c.source for c in read_notebook(file).cells if c.cell_type == "code"]
        # One value a lesson, whatever its cells may show
        cells[lesson_name(file)] = "\n\n".join([*code[:2], "0"])
    where = "sys.modules['helpers'].__path__[0]"
    (*values, helpers), printed = run(empty, *cells.values(), where)
    assert dict(zip(cells, values, strict=True)) == dict.fromkeys(cells, 0), printed
    assert Path(helpers).is_relative_to(empty), "the clone's own"


def versions(text):
    """Name -> version, of lines such as torchinfo==1.8.0 or torch>=2.11,<3."""
    return dict(re.findall(r"(?m)^([\w-]+)[=>]=([\w.]+)", text))


def test_pip_installs_what_colab_lacks_and_nothing_of_colabs_own():
    (line,) = [line for line in SETUP.splitlines() if "%pip" in line]
    assert "--no-deps -r {COURSE}/requirements-colab.txt" in line
    installed = versions((ROOT / "requirements-colab.txt").read_text("utf-8"))
    constraints = (ROOT / "constraints-colab.txt").read_text("utf-8")
    colab, lacking = (versions(text) for text in constraints.split("# Not on Colab"))
    # Colab's torchsummary is no promise: its list has changed before.
    assert installed == lacking | {"torchsummary": colab["torchsummary"]}
    lessons = (ROOT / "requirements.txt").read_text("utf-8").split("# Jupyter")[0]
    assert versions(lessons).keys() <= colab.keys() | installed.keys()
