"""tools.notebooks: every rule of `check` can fail, `clean` does what it says alone."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import ROOT, notebook_text
from tools.address import badge, repository, setup_cell
from tools.notebooks import MAX_LINES, MAX_OUTPUT_LINES, METADATA, main


def make_notebook():
    """A notebook with nothing wrong, but for its name: it has to be `lesson.ipynb`."""
    address = repository()
    cells = [
        new_markdown_cell(f"# Lesson\n\n{badge('lesson', address)}", id="title"),
        new_code_cell(setup_cell("lesson", address), id="setup", execution_count=1),
        new_code_cell(
            "6 * 7",
            id="six-times-seven",
            execution_count=2,
            outputs=[
                new_output("execute_result", {"text/plain": "42"}, execution_count=2)
            ],
        ),
    ]
    return nbformat.from_dict(new_notebook(metadata=METADATA, cells=cells))


@pytest.fixture
def lesson(tmp_path):
    """Writes the notebook, changed, and returns its path."""

    def write(change=lambda notebook: None):
        notebook = make_notebook()
        change(notebook)
        path = tmp_path / "lesson.ipynb"
        path.write_text(notebook_text(notebook), encoding="utf-8")
        return path

    return write


def stream(text):
    return lambda nb: nb.cells[2].outputs.append(new_output("stream", text=text))


def put(value, *place):
    """A change that puts a value at a place: put("x", "cells", 2, "id")."""

    def change(notebook):
        *way, last = place
        for step in way:
            notebook = notebook[step]
        notebook[last] = nbformat.from_dict(value)

    return change


def error_output():
    return new_output(
        "error", ename="ValueError", evalue="no", traceback=["ValueError: no"]
    )


FAULTS = {
    "kernelspec": (put("venv", "metadata", "kernelspec", "display_name"), "allow-list"),
    "widgets": (put({}, "metadata", "widgets"), "allow-list"),
    "cell-metadata": (
        put({"collapsed": True}, "cells", 2, "metadata"),
        "six-times-seven: metadata",
    ),
    "tag": (
        put({"tags": ["nbval-skip"]}, "cells", 2, "metadata"),
        "six-times-seven: tags not on the allow-list: nbval-skip",
    ),
    "random-id": (put("deadbeef", "cells", 2, "id"), "deadbeef: the id"),
    "uuid": (
        put("f7d0b9c2-35a1-4c0e-9d52-0a4f1c2b3d4e", "cells", 2, "id"),
        "the id should be words",
    ),
    "colab-id": (put("aB3_xYz", "cells", 2, "id"), "the id should be words"),
    "long-id": (put("long-" * 9 + "id", "cells", 2, "id"), "the id should be words"),
    "same-id": (put("setup", "cells", 2, "id"), "several cells have this id"),
    "no-id": (lambda nb: nb.cells[2].pop("id"), "not a valid notebook"),
    "not-executed": (
        put(None, "cells", 2, "execution_count"),
        "six-times-seven: not executed",
    ),
    "out-of-order": (put(7, "cells", 2, "execution_count"), "as number 7, not 2"),
    "empty": (put(" \n", "cells", 2, "source"), "the cell is empty"),
    "long-cell": (
        put("x\n" * (MAX_LINES + 1), "cells", 2, "source"),
        "26 lines of code",
    ),
    "long-output": (stream("x\n" * MAX_OUTPUT_LINES), "61 lines of output"),
    "address": (stream("<object at 0x7f3a5c0d1e90>"), "an address: 0x7f3a5c0d1e90"),
    "home": (stream("in /home/me/course"), "an absolute path: /home/me/course"),
    "root": (stream("/root/x"), "an absolute path"),
    "temporary": (stream("'/tmp/abc'"), "an absolute path"),
    "mac": (stream("/Users/me/x"), "an absolute path"),
    "colab": (stream("/content/drive"), "an absolute path"),
    "windows": (stream(r"C:\Users\me"), "an absolute path"),
    "library": (stream("lib/site-packages/torch: Warning"), "a path of the kernel's"),
    "path-in-result": (
        put(
            {"text/plain": "PosixPath('/srv/data/x')"}, "cells", 2, "outputs", 0, "data"
        ),
        "an absolute path",
    ),
    "error": (
        lambda nb: nb.cells[2].outputs.append(error_output()),
        "six-times-seven: a stored error",
    ),
    "path-in-traceback": (
        lambda nb: (
            put({"tags": ["raises-exception"]}, "cells", 2, "metadata")(nb),
            nb.cells[2].outputs.append(error_output()),
            put(
                ["File \x1b[32m/srv/me/lib.py\x1b[0m:3"],
                *("cells", 2, "outputs", 1, "traceback"),
            )(nb),
        ),
        "an absolute path: /srv/me/lib.py",
    ),
    "no-setup-cell": (
        put("import torch", "cells", 1, "source"),
        "the first code cell is not the setup cell",
    ),
    "other-setup-cell": (
        lambda nb: put(
            nb.cells[1].source.replace("depth 1", "depth 2"), "cells", 1, "source"
        )(nb),
        "the first code cell is not the setup cell",
    ),
    "invalid": (put("prose", "cells", 0, "cell_type"), "not a valid notebook"),
}


def test_a_good_notebook_passes(lesson, capsys):
    assert main(["check", str(lesson())]) == 0, capsys.readouterr().out


def test_what_only_looks_like_a_fault_passes(lesson, capsys):
    text = (
        "https://pytorch.org/docs/stable/x.html 1/2/3 and/or 0xff ../data/x.npz N/A/x"
    )
    path = lesson(stream(text))
    assert main(["check", str(path)]) == 0, capsys.readouterr().out


def test_a_tagged_error_passes(lesson, capsys):
    def change(notebook):
        notebook.cells[2].metadata.tags = ["raises-exception"]
        notebook.cells[2].outputs.append(error_output())

    assert main(["check", str(lesson(change))]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
@pytest.mark.filterwarnings("ignore::nbformat.warnings.MissingIDFieldWarning")
@pytest.mark.filterwarnings("ignore::nbformat.warnings.DuplicateCellId")
def test_each_rule_can_fail(lesson, capsys, change, message):
    path = lesson()
    notebook = make_notebook()
    change(notebook)
    # nbformat.writes would mend some of these faults.
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")
    assert main(["check", str(path)]) == 1
    assert any(
        line.startswith("lesson.ipynb: ") and message in line
        for line in capsys.readouterr().out.splitlines()
    )


def test_another_layout_of_the_file_is_a_fault(lesson, capsys):
    path = lesson()
    path.write_text(json.dumps(json.loads(path.read_text("utf-8"))), "utf-8")
    assert main(["check", str(path)]) == 1
    assert "layout" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "clean"])
@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"nbformat": 3}', "\xff"])
def test_a_file_that_is_no_notebook(tmp_path, capsys, command, text):
    path = tmp_path / "broken.ipynb"
    path.write_bytes(text.encode("latin-1"))
    assert main([command, str(path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "broken.ipynb: not " in line
    assert path.read_bytes() == text.encode("latin-1")


def test_clean_strips_metadata_alone_and_once(lesson, capsys):
    clean = lesson().read_text("utf-8")

    def change(notebook):
        notebook.metadata.widgets = {"state": {}}
        notebook.metadata.kernelspec.display_name = "venv"
        notebook.metadata.language_info.version = "3.13.0"
        for cell in notebook.cells:
            cell.metadata = {"execution": {"iopub.busy": "now"}, "tags": ["hide-input"]}

    path = lesson(change)
    assert main(["check", str(path)]) == 1
    assert main(["clean", str(path)]) == 0
    assert path.read_text("utf-8") == clean
    before = path.stat().st_mtime_ns
    assert main(["clean", str(path)]) == 0
    assert path.stat().st_mtime_ns == before, "a clean file is not written again"
    assert main(["check", str(path)]) == 0, capsys.readouterr().out


def test_clean_keeps_what_an_author_wrote(lesson):
    def change(notebook):
        stream("at 0x7f3a5c0d1e90 in /home/me")(notebook)
        notebook.cells[2].metadata.tags = ["nbval-ignore-output", "hide-input"]
        notebook.cells[2].execution_count = 9
        notebook.cells.append(new_markdown_cell("", id="deadbeef"))

    path = lesson(change)
    main(["clean", str(path)])
    expected = make_notebook()
    change(expected)
    expected.cells[2].metadata.tags = ["nbval-ignore-output"]
    assert nbformat.read(path, as_version=4) == expected


def test_the_lessons_are_the_default(capsys):
    """`make test` names no files."""
    main(["check"])
    lessons = list((ROOT / "notebooks").glob("*.ipynb"))
    assert f"{len(lessons)} notebooks are clean" in capsys.readouterr().out
