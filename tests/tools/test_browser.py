"""tools.browser, as far as it goes without one; `make test-browser` is the rest."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

browser = pytest.importorskip("tools.browser", reason="Playwright is not installed")


def test_no_chromium(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(SystemExit, match="sudo apt install chromium"):
        browser.find_chromium()


@pytest.mark.parametrize(
    ("source", "figure", "fault"),
    [
        ("6 * 7", True, []),
        ("6 * 7", False, ["cell drawn: the figure is missing"]),
        ("1 / 0", False, ["cell drawn: ZeroDivisionError: no"]),
        (None, False, ["cell drawn: not run"]),
    ],
)
def test_what_the_browser_tool_finds(source, figure, fault):
    picture = nbformat.v4.new_output("display_data", {"image/png": "AAAA"})
    error = nbformat.v4.new_output(
        "error", ename="ZeroDivisionError", evalue="no", traceback=[]
    )
    stored = new_code_cell("draw()", id="drawn", execution_count=1, outputs=[picture])
    saved = new_code_cell(
        "draw()",
        id="drawn",
        execution_count=1 if source else None,
        outputs=[error] if source == "1 / 0" else [],
    )
    stored, saved = (new_notebook(cells=[cell]) for cell in (stored, saved))
    assert browser.faults(stored, saved, [figure]) == fault


def test_the_copy_has_no_outputs_and_the_course_keeps_its_own(tmp_path):
    out = nbformat.v4.new_output("stream", text="old")
    cell = new_code_cell("1", id="one", execution_count=1, outputs=[out])
    file = tmp_path / "01_x.ipynb"
    nbformat.write(new_notebook(cells=[cell]), file)
    before = file.read_bytes()
    (tmp_path / "course").mkdir()
    browser.copy_course([file], tmp_path / "course")
    copy = nbformat.read(tmp_path / "course/notebooks/01_x.ipynb", as_version=4)
    assert copy.cells[0].outputs == []
    assert copy.cells[0].execution_count is None
    assert file.read_bytes() == before
    assert (tmp_path / "course/data/digits.npz").exists()
