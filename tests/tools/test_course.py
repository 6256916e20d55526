"""tools.course: a failing lesson keeps no other from running, and nothing is hidden."""

import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import ROOT, course


@pytest.fixture
def lessons(tmp_path, monkeypatch):
    """Two lessons, of which the first fails, in place of the course's."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    fails = [
        new_markdown_cell("# It fails & says so", id="title"),
        new_code_cell("print('so far')", id="works"),
        new_code_cell("{}['absent']", id="raises"),
        new_code_cell("print('not reached')", id="after"),
    ]
    passes = [
        new_code_cell("1 / 0", id="may-raise", metadata={"tags": ["raises-exception"]}),
        new_code_cell("from pathlib import Path\n\nPath.cwd().name", id="folder"),
    ]
    nbformat.write(new_notebook(cells=fails), folder / "01_fails.ipynb")
    nbformat.write(new_notebook(cells=passes), folder / "02_passes.ipynb")
    monkeypatch.setattr(course, "NOTEBOOKS", folder)
    monkeypatch.setattr(course, "BUILD", tmp_path / "build")
    return folder


def test_the_others_run_and_the_failure_is_named(
    lessons, tmp_path, monkeypatch, capsys
):
    kept = tmp_path / "kept"
    (kept / "02_passes").mkdir(parents=True)
    (kept / "02_passes" / "epoch_001.pt").touch()
    monkeypatch.setenv("COURSE_CHECKPOINTS", str(kept))
    before = {file: file.read_bytes() for file in lessons.iterdir()}

    assert course.main([]) == 1

    out, err = capsys.readouterr()
    assert "FAILED 01_fails, cell raises: KeyError: 'absent'" in err
    rows = [
        line.split() for line in out.splitlines() if line.endswith((".pt", "passes"))
    ]
    (row,) = [row for row in rows if row[0] == "02_passes"]
    assert row[1] == "ok"
    assert row[3] == str(kept / "02_passes")
    assert sorted(kept.iterdir()) == [kept / "02_passes"], "no folder made for looking"

    build = tmp_path / "build"
    index = (build / "index.html").read_text("utf-8")
    assert '<a href="01_fails.html">It fails &amp; says so</a>' in index
    assert ">failed<" in index
    assert ">ok<" in index
    page = (build / "01_fails.html").read_text("utf-8")
    assert "so far" in page
    assert "KeyError" in page
    ran = nbformat.read(build / "notebooks" / "02_passes.ipynb", as_version=4)
    assert ran.cells[1].outputs[0].data["text/plain"] == "'notebooks'"
    assert {file: file.read_bytes() for file in lessons.iterdir()} == before


def test_one_lesson_by_name(lessons, tmp_path, capsys):
    assert course.main(["02_passes"]) == 0
    assert not (tmp_path / "build" / "01_fails.html").exists()


def test_a_lesson_that_is_none(lessons):
    message = "No such lesson: 09_x[.] There are: 01_fails, 02_passes[.]"
    with pytest.raises(SystemExit, match=message):
        course.main(["09_x"])


def test_the_page_links_to_pages(lessons, tmp_path):
    notebook = new_notebook(
        cells=[new_markdown_cell("[next](02_passes.ipynb)", id="links")]
    )
    result = course.Result("01_fails", "It fails", 0.0)
    (tmp_path / "build" / "notebooks").mkdir(parents=True)
    course.write_page(notebook, result, tmp_path / "build")
    assert 'href="02_passes.html"' in (tmp_path / "build/01_fails.html").read_text()


@pytest.mark.parametrize("name", ["notebooks", "address", "course"])
def test_the_tools_have_a_usage(name):
    command = [sys.executable, "-m", f"tools.{name}", "--help"]
    shown = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"python -m tools.{name}" in shown.stdout
