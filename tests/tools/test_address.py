"""tools.address: the address moves everywhere at once, and nothing else moves."""

import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tools import ROOT, address
from tools.address import ADDRESS, badge, move, repository, setup_cell

HERE = "https://github.com/YOUR_NAME/pytorch-models-course"
FORK = "https://github.com/a-learner/models.course_2"


def texts(course):
    files = (file for file in course.rglob("*") if file.is_file())
    return {str(p.relative_to(course)): p.read_text("utf-8") for p in files}


@pytest.fixture
def course(tmp_path):
    """A course's files with the address in them; what each is to be after a move."""

    def write(here):
        lesson = f"{badge('deeper/01_x', here)}\n{setup_cell(here)}\n"
        return {
            "pyproject.toml": f'[project.urls]\nRepository = "{here}"\n',
            "README.md": f"git clone {here}\ncd pytorch-models-course\n({here}.git).",
            "README.ko.md": badge("ko/01_x", here),
            "notebooks/01_x.ipynb": lesson,
            "notebooks/deeper/01_x.ipynb": f"{lesson}From {here}.",
            "docs/start/index.md": f"<{here}/issues>",
            "locale/ko/01_x.po": f'msgid "{here}"',
            "helpers/other.py": HERE,  # not among the files that hold it
            "docs/near.md": f"{HERE}-2 {HERE}.other gitlab.com/YOUR_NAME/"
            "pytorch-models-course MyDrive/pytorch-models-course",
        }

    for name, text in write(HERE).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path, write


def test_to_a_fork_and_back(course):
    folder, write = course
    before = texts(folder)
    changed = move(FORK + ".git", folder)
    assert len(changed) == 7
    assert texts(folder) == write(FORK)
    assert repository(folder) == FORK
    assert move(FORK + "/", folder) == [], "a second time changes nothing"
    move(HERE, folder)
    assert texts(folder) == before


@pytest.mark.parametrize(
    "url",
    [
        "",
        "github.com/me/course",
        "http://github.com/me/course",
        "git@github.com:me/course.git",
        "https://gitlab.com/me/course",
        "https://github.com/me",
        "https://github.com/me/course/tree/main",
        'https://github.com/me/c"; rm',
        "https://github.com/me/course\n",
    ],
)
def test_what_is_no_address_changes_nothing(course, url):
    folder, _ = course
    before = texts(folder)
    with pytest.raises(ValueError, match=r"not like https.*OWNER/NAME"):
        move(url, folder)
    assert texts(folder) == before


def test_the_placeholder_is_an_address():
    assert ADDRESS.fullmatch(repository())


def test_the_command_without_an_address_says_how(monkeypatch):
    ran = subprocess.run(
        [sys.executable, "-m", "tools.address"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("make address URL=https://github.com/OWNER/NAME")


def test_the_setup_cell_is_short_and_formatted(tmp_path):
    assert len([line for line in address.SETUP.splitlines() if line]) <= 10
    pytest.importorskip("ruff")
    path = tmp_path / "lesson.ipynb"
    cells = [new_code_cell(setup_cell(HERE), id="setup")]
    nbformat.write(new_notebook(cells=cells), path)
    for command in (["format", "--check"], ["check"]):
        ruff = [sys.executable, "-m", "ruff", *command]
        ran = subprocess.run(
            [*ruff, "--config", ROOT / "pyproject.toml", path],
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
