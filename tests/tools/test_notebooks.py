"""tools.notebooks: every rule of `check` can fail, `clean` does what it says alone."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import lesson_name, notebook_text, notebooks
from tools.address import badge, repository, setup_cell
from tools.notebooks import MAX_LINES, MAX_OUTPUT_LINES, METADATA, main

NAME = "deeper/01_lesson"


def make_notebook():
    """A notebook with nothing wrong, in its place."""
    address = repository()
    cells = [
        new_markdown_cell(f"# Lesson\n\n{badge(NAME, address)}", id="title"),
        new_code_cell(setup_cell(address), id="setup", execution_count=1),
        new_code_cell(
            "6 * 7",
            id="product",
            execution_count=2,
            outputs=[
                new_output("execute_result", {"text/plain": "42"}, execution_count=2)
            ],
        ),
    ]
    return nbformat.from_dict(new_notebook(metadata=METADATA, cells=cells))


@pytest.fixture
def write(tmp_path):
    """Writes the notebook, changed, and returns its path."""
    path = tmp_path / "notebooks" / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)

    def write(change=lambda notebook: None, layout=notebook_text):
        notebook = make_notebook()
        change(notebook)
        path.write_text(layout(notebook), "utf-8")
        return path

    return write


def put(value, *place):
    """A change that puts a value at a place: put("x", "cells", 2, "id")."""

    def change(notebook):
        *way, last = place
        for step in way:
            notebook = notebook[step]
        notebook[last] = nbformat.from_dict(value)

    return change


def cell(field, value):
    return put(value, "cells", 2, field)


def tags(*names):
    return cell("metadata", {"tags": list(names)})


def out(*args, **fields):
    return lambda nb: nb.cells[2].outputs.append(new_output(*args, **fields))


def stream(text):
    return out("stream", text=text)


def both(*changes):
    return lambda nb: [change(nb) for change in changes]


error = out("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])
long_table = {"text/plain": "x" + "\nx" * (MAX_OUTPUT_LINES - 1)}
FAULTS = {
    "kernelspec": (put("venv", "metadata", "kernelspec", "name"), "allow-list"),
    "widgets": (put({}, "metadata", "widgets"), "allow-list"),
    "cell-metadata": (cell("metadata", {"collapsed": True}), "product: metadata"),
    "tag": (tags("nbval-skip"), "product: tags not on the allow-list: nbval-skip"),
    "random-id": (cell("id", "deadbeef"), "deadbeef: the id should be words"),
    "uuid": (
        cell("id", "f7d0b9c2-35a1-4c0e-9d52-0a4f1c2b3d4e"),
        "the id should be words",
    ),
    "colab-id": (cell("id", "aB3_xYz"), "the id should be words"),
    "long-id": (cell("id", "long-" * 9 + "id"), "the id should be words"),
    "same-id": (cell("id", "setup"), "several cells have this id"),
    "no-id": (lambda nb: nb.cells[2].pop("id"), "not a valid notebook"),
    "not-executed": (cell("execution_count", None), "product: not executed"),
    "out-of-order": (cell("execution_count", 7), "as number 7, not 2"),
    "empty": (cell("source", " \n"), "the cell is empty"),
    "long-cell": (cell("source", "x\n" * (MAX_LINES + 1)), "21 lines of code"),
    "long-output": (stream("x\n" * MAX_OUTPUT_LINES), "41 lines of output"),
    "long-table": (out("display_data", long_table), "41 lines of output"),
    "address": (stream("<object at 0x7f3a5c0d1e90>"), "an address: 0x7f3a5c0d1e90"),
    "home": (stream("in /home/me/course"), "an absolute path: /home/me/course"),
    "root": (stream("/root/x"), "an absolute path"),
    "temporary": (stream("'/tmp/abc'"), "an absolute path"),
    "mac": (stream("/Users/me/x"), "an absolute path"),
    "colab": (stream("/content/drive"), "an absolute path"),
    "windows": (stream(r"C:\Users\me"), "an absolute path"),
    "library": (stream("lib/site-packages/torch: Warning"), "a path of the kernel's"),
    "path-in-result": (
        put({"text/plain": "Path('/srv/data/x')"}, "cells", 2, "outputs", 0, "data"),
        "an absolute path",
    ),
    "error": (error, "product: a stored error"),
    "path-in-traceback": (
        both(
            tags("raises-exception"),
            out(
                "error", ename="E", evalue="no", traceback=["\x1b[32m/srv/me\x1b[0m:3"]
            ),
        ),
        "an absolute path: /srv/me",
    ),
    "no-badge": (put("# Lesson", "cells", 0, "source"), "the first cell lacks the"),
    "other-badge": (
        put(badge("01_lesson", repository()), "cells", 0, "source"),
        f"the first cell lacks the badge {badge(NAME, repository())}",
    ),
    "no-setup-cell": (put("import torch", "cells", 1, "source"), "the first code cell"),
    "other-setup-cell": (
        put(setup_cell(f"{repository()}-2"), "cells", 1, "source"),
        "the first code cell is not tools.address's setup cell",
    ),
    "invalid": (put("prose", "cells", 0, "cell_type"), "not a valid notebook"),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
@pytest.mark.filterwarnings("ignore::nbformat.warnings.MissingIDFieldWarning")
@pytest.mark.filterwarnings("ignore::nbformat.warnings.DuplicateCellId")
def test_each_rule_can_fail(write, capsys, change, message):
    path = write(change, layout=json.dumps)  # nbformat would mend some of these
    assert main(["check", str(path)]) == 1
    assert any(
        line.startswith(f"{NAME}: ") and message in line
        for line in capsys.readouterr().out.splitlines()
    )


QUIZ = {
    "text/plain": "<IPython.core.display.HTML object>",
    "text/html": "<div>\n" * 100,
    "application/javascript": "var a = '/srv/x/y';\n" * 100,
}
FINE = {
    "as it is": lambda notebook: None,
    "what only looks like a fault": stream(
        "https://pytorch.org/docs/stable/x.html 1/2/3 and/or 0xff ../data/x.npz N/A/x"
    ),
    "a tagged error": both(tags("raises-exception"), error),
    "a quiz, long where nobody reads it": out("display_data", QUIZ),
    "the longest cell": cell("source", "x\n" * MAX_LINES),
    "the longest output": stream("x\n" * (MAX_OUTPUT_LINES - 1)),
}


@pytest.mark.parametrize("change", FINE.values(), ids=FINE)
def test_what_is_good_passes(write, capsys, change):
    assert main(["check", str(write(change))]) == 0, capsys.readouterr().out


def test_another_layout_of_the_file_is_a_fault(write, capsys):
    path = write(layout=json.dumps)
    assert main(["check", str(path)]) == 1
    assert "layout" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "clean"])
@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"nbformat": 3}', "\xff"])
def test_a_file_that_is_no_notebook(tmp_path, capsys, command, text):
    path = tmp_path / "broken.ipynb"
    path.write_bytes(text.encode("latin-1"))
    assert main([command, str(path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "broken.ipynb: not a" in line
    assert path.read_bytes() == text.encode("latin-1")


def test_clean_strips_metadata_and_renews_the_setup_cell(write, capsys):
    good = write().read_text("utf-8")

    def change(notebook):
        notebook.metadata.widgets = {"state": {}}
        notebook.metadata.kernelspec.display_name = "venv"
        notebook.metadata.language_info.version = "3.13.0"
        notebook.cells[1].source = "import os  # as it was last year"
        for cell in notebook.cells:
            cell.metadata = {"execution": {"iopub.busy": "now"}, "tags": ["hide-input"]}

    path = write(change)
    assert main(["clean", str(path)]) == 0
    assert path.read_text("utf-8") == good
    before = path.stat().st_mtime_ns
    assert main(["clean", str(path)]) == 0
    assert path.stat().st_mtime_ns == before, "a clean file is not written again"
    assert main(["check", str(path)]) == 0, capsys.readouterr().out


def test_clean_keeps_what_an_author_wrote(write):
    def change(notebook):
        stream("at 0x7f3a5c0d1e90 in /home/me")(notebook)
        notebook.cells[2].execution_count = 9
        notebook.cells.append(new_markdown_cell("", id="deadbeef"))

    path = write(both(change, tags("nbval-ignore-output", "hide-input")))
    main(["clean", str(path)])
    expected = make_notebook()
    both(change, tags("nbval-ignore-output"))(expected)
    assert path.read_text("utf-8") == notebook_text(expected)


def test_all_notebooks_are_the_default(write, monkeypatch, capsys):
    """`make test` names no files."""
    monkeypatch.setattr(notebooks, "all_notebooks", lambda: [write()])
    assert main(["check"]) == 0
    assert capsys.readouterr().out == "1 notebooks are clean\n"


def test_a_lesson_is_named_by_its_place_in_notebooks(tmp_path):
    file = tmp_path / "notebooks" / "mine" / "notebooks" / "ko" / "01_x.ipynb"
    assert lesson_name(file) == "ko/01_x"
    assert lesson_name(file.parents[1] / "01_x.ipynb") == "01_x"
