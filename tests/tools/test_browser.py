"""tools.browser, as far as it goes without one; `make test-browser` is the rest."""

import urllib.error
import urllib.request

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

browser = pytest.importorskip("tools.browser", reason="Playwright is not installed")


ERROR = new_output("error", ename="E", evalue="no")


def test_no_chromium(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(SystemExit, match="sudo apt install chromium"):
        browser.find_chromium()


def notebook(*outputs, number=1):
    cell = new_code_cell(
        "draw()", id="drawn", execution_count=number, outputs=list(outputs)
    )
    return new_notebook(cells=[cell])


@pytest.mark.parametrize(
    ("number", "outputs", "figure", "fault"),
    [
        (1, [], True, []),
        (1, [], False, ["cell drawn: the figure is missing"]),
        (
            1,
            [new_output("error", ename="E", evalue="no")],
            False,
            ["cell drawn: E: no"],
        ),
        (None, [], False, ["cell drawn: not run"]),
    ],
)
def test_what_the_browser_tool_finds(number, outputs, figure, fault):
    stored = notebook(new_output("display_data", {"image/png": "AAAA"}))
    saved = notebook(*outputs, number=number)
    assert browser.faults(stored, saved, [figure]) == fault


def test_each_rank_s_output_must_be_there():
    both = new_output("stream", text="[stdout:0] \n1\n[stdout:1] \n2\n")
    one = new_output("stream", text="[stdout:0] \n1\n")
    assert browser.faults(notebook(both), notebook(both), [False]) == []
    assert browser.faults(notebook(both), notebook(one), [False]) == [
        "cell drawn: a rank's output is missing"
    ]


def test_the_copy_has_no_outputs_and_the_course_keeps_its_own(tmp_path, monkeypatch):
    file = tmp_path / "mine" / "notebooks" / "deeper" / "01_x.ipynb"
    file.parent.mkdir(parents=True)
    nbformat.write(notebook(new_output("stream", text="old")), file)
    before = file.read_bytes()
    monkeypatch.setattr(browser, "ROOT", tmp_path / "mine")
    browser.copy_course(tmp_path / "copy")
    copy = nbformat.read(tmp_path / "copy/notebooks/deeper/01_x.ipynb", as_version=4)
    assert copy.cells[0].outputs == []
    assert copy.cells[0].execution_count is None
    assert file.read_bytes() == before


def test_nobody_gets_in_without_the_token(tmp_path):
    """It runs whatever code it is sent, and every user of this machine can reach it."""
    plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with browser.jupyterlab(tmp_path, tmp_path) as (address, token):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            plain.open(f"{address}api/kernels", timeout=20)
        plain.open(f"{address}api/kernels?token={token}", timeout=20).close()
