"""tools.address: the address stands in one place, and all else agrees with it."""

import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import ROOT, address, notebook_text
from tools.address import AddressError, badge, carried, point, repository, setup_cell

FORK = "https://github.com/a-learner/models.course_2"
LESSONS = ("01_summary", "03_saving_and_loading")


@pytest.fixture
def course(tmp_path):
    """A course of two lessons and a README, at this repository's address."""
    here = repository()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "notebooks").mkdir()
    for lesson in LESSONS:
        out = new_output("stream", text=f"{here}\n")
        cells = [
            new_markdown_cell(f"# It\n\n{badge(lesson, here)} 5 min", id="title"),
            new_code_cell(setup_cell(lesson, here), id="setup", execution_count=1),
            new_code_cell(f"print({here!r})", id="other", outputs=[out]),
            new_markdown_cell(f"The course comes from {here}.", id="end"),
        ]
        text = notebook_text(new_notebook(cells=cells))
        (tmp_path / "notebooks" / f"{lesson}.ipynb").write_text(text, "utf-8")
    rows = "\n".join(f"| {lesson} | {badge(lesson, here)} |" for lesson in LESSONS)
    (tmp_path / "README.md").write_text(
        f"git clone {here}\n\n{rows}\n\nBased on {here}"
    )
    return tmp_path


def texts(course):
    return {p: p.read_text("utf-8") for p in course.rglob("*") if p.is_file()}


def test_the_lessons_agree_with_pyproject():
    for path, text in carried(ROOT, repository()):
        assert text == path.read_text("utf-8"), f"{path.name}: run `make address`"


def test_to_a_fork_and_back(course):
    before, here = texts(course), repository()

    assert len(point(course, FORK)) == 4

    assert repository(course) == FORK
    for lesson in LESSONS:
        path = course / "notebooks" / f"{lesson}.ipynb"
        old = nbformat.reads(before[path], as_version=4).cells
        new = nbformat.read(path, as_version=4).cells
        assert new[0].source == f"# It\n\n{badge(lesson, FORK)} 5 min"
        assert new[1].source == setup_cell(lesson, FORK)
        new[0].source, new[1].source = old[0].source, old[1].source
        assert new == old, "all else is as it was"
    readme = (course / "README.md").read_text("utf-8")
    assert all(badge(lesson, FORK) in readme for lesson in LESSONS)
    assert readme.startswith(f"git clone {FORK}\n")
    assert readme.endswith(f"Based on {here}")
    old, new = (
        before[course / "pyproject.toml"],
        texts(course)[course / "pyproject.toml"],
    )
    assert new == old.replace(f'Repository = "{here}"', f'Repository = "{FORK}"')

    point(course, here)
    assert texts(course) == before


def test_a_second_time_changes_nothing(course):
    point(course, FORK)
    assert point(course, FORK + ".git") == point(course, FORK + "/") == []


def test_an_older_setup_cell_is_brought_up_to_date(course):
    path = course / "notebooks" / "01_summary.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = "import os, sys\n\nLESSON = '00_old'"
    nbformat.write(notebook, path)
    assert point(course, repository()) == [path]
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[1].source == setup_cell("01_summary", repository())


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
def test_a_bad_address_changes_nothing(course, url):
    before = texts(course)
    with pytest.raises(AddressError, match="not a repository's address") as error:
        point(course, url)
    assert len(str(error.value).splitlines()) == 1
    assert texts(course) == before


@pytest.mark.parametrize("cell", [0, 1])
def test_a_lesson_with_no_place_for_it_changes_nothing(course, cell):
    path = course / "notebooks" / "03_saving_and_loading.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[cell].source = "nothing"
    nbformat.write(notebook, path)
    before = texts(course)
    with pytest.raises(AddressError, match=r"03_saving_and_loading\.ipynb: the first"):
        point(course, FORK)
    assert texts(course) == before


@pytest.mark.parametrize(
    "url",
    [
        "git@github.com:me/mine.git",
        "https://github.com/me/mine",
        "ssh://git@github.com/me/mine",
    ],
)
def test_an_origin_on_github_is_suggested(course, monkeypatch, capsys, url):
    subprocess.run(["git", "init", "-q", course], check=True)
    subprocess.run(["git", "-C", course, "remote", "add", "origin", url], check=True)
    monkeypatch.setattr(address, "ROOT", course)
    monkeypatch.setattr(address, "repository", lambda: repository(course))
    point(course, "https://github.com/YOUR_NAME/pytorch-models-course")
    address.main([])
    assert "make address URL=https://github.com/me/mine\n" in capsys.readouterr().out
    address.main(["https://github.com/me/mine"])
    assert "make address" not in capsys.readouterr().out


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_setup_cell_is_short_and_formatted(tmp_path, lesson):
    source = setup_cell(lesson, "https://github.com/YOUR_NAME/pytorch-models-course")
    lines = [line for line in source.splitlines() if line]
    assert len(lines) <= 8
    assert max(map(len, lines)) <= 88
    pytest.importorskip("ruff")
    path = tmp_path / f"{lesson}.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source, id="setup")]), path)
    for command in (["format", "--check"], ["check"]):
        ruff = [
            sys.executable,
            "-m",
            "ruff",
            *command,
            "--config",
            ROOT / "pyproject.toml",
        ]
        ran = subprocess.run([*ruff, path], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
