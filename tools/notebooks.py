"""Keep the notebooks clean, so that a diff shows what an author changed.

    python -m tools.notebooks check [FILES]   # print every problem; exit 1 if any
    python -m tools.notebooks clean [FILES]   # strip what is not on the allow-list

FILES are all notebooks of notebooks/ if left out. `check` covers what `clean` does not
mend too: cells not executed in order, ids that say nothing, this machine's paths in
outputs, a setup cell that is not tools.address's. A file that is no notebook gets one
line that names it, and exit status 1.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.validator import iter_validate

from tools import NOTEBOOKS, NotebookError, notebook_text, read_notebook
from tools.address import repository, setup_cell

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Not nbval-skip: every cell of a lesson runs.
TAGS = ("nbval-ignore-output", "raises-exception")
MAX_LINES, MAX_OUTPUT_LINES, MAX_ID = 25, 60, 40

WORDS = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# What nbformat (8 digits) and JupyterLab (a UUID) call a new cell
RANDOM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{8}")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
VOLATILE = {
    "an address": re.compile(r"\b0x[0-9a-fA-F]{6,}"),
    # Two components at least ("and/or" and "</td>" are none), and not within a URL or
    # the home folder, which ~ names on every machine
    "an absolute path": re.compile(r"(?<![\w.:/<~-])/[\w.+-]+/[\w./+-]*|\b[A-Z]:\\\w+"),
    "a path of the kernel's": re.compile(r"ipykernel_\d+|ipython-input|site-packages"),
}


def strip(notebook: NotebookNode) -> None:
    """Reduce the metadata to the allow-list, in place; nothing else is touched."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = [tag for tag in cell.metadata.get("tags", []) if tag in TAGS]
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        for output in cell.get("outputs", []):
            output.pop("transient", None)


def clean(path: Path) -> bool:
    """Strip the file's metadata; returns whether that changed the file."""
    notebook = read_notebook(path)
    if error := next(iter_validate(notebook), None):
        raise NotebookError(f"{path}: {_first_line(error)}")
    strip(notebook)
    text = notebook_text(notebook)
    if text == path.read_text(encoding="utf-8"):
        return False
    path.write_text(text, encoding="utf-8")
    return True


def problems(path: Path) -> Iterator[str]:
    """Everything that `check` has against the notebook, as "cell-id: problem"."""
    notebook = read_notebook(path)
    if errors := [_first_line(error) for error in iter_validate(notebook)]:
        yield from errors  # the rules below need a valid notebook
        return
    if notebook.metadata != METADATA:
        yield "metadata is not on the allow-list (`make format` strips it)"

    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    expected = setup_cell(path.stem, repository())
    if not code_cells or code_cells[0].source != expected:
        yield "the first code cell is not the setup cell (`make address` brings it)"
    numbers = {id(cell): number for number, cell in enumerate(code_cells, start=1)}
    times_used = Counter(cell.get("id", "") for cell in notebook.cells)
    for place, cell in enumerate(notebook.cells, start=1):
        name = cell.get("id") or f"cell {place}"
        found = [*_id_problems(cell, times_used), *_cell_problems(cell)]
        if cell.cell_type == "code":
            found += _code_problems(cell, numbers[id(cell)])
        yield from (f"{name}: {problem}" for problem in found)

    text = path.read_text(encoding="utf-8")
    if text != notebook_text(notebook):
        yield "not written in nbformat's layout (`make format` does it)"


def _first_line(error: Exception) -> str:
    return f"not a valid notebook: {str(error).splitlines()[0]}"


def _id_problems(cell: NotebookNode, times_used: Counter[str]) -> Iterator[str]:
    name = cell.get("id", "")
    if times_used[name] > 1:
        yield "several cells have this id"
    if RANDOM_ID.fullmatch(name) or not WORDS.fullmatch(name) or len(name) > MAX_ID:
        yield (
            f"the id should be words, such as load-strict, of {MAX_ID} letters at most"
        )


def _cell_problems(cell: NotebookNode) -> Iterator[str]:
    if not cell.source.strip():
        yield "the cell is empty"
    tags = cell.metadata.get("tags", [])
    if set(cell.metadata) - {"tags"}:
        yield "metadata is not on the allow-list (`make format` strips it)"
    if unknown := [tag for tag in tags if tag not in TAGS]:
        yield f"tags not on the allow-list: {', '.join(unknown)}"


def _code_problems(cell: NotebookNode, number: int) -> Iterator[str]:
    if cell.execution_count is None:
        yield "not executed"
    elif cell.execution_count != number:
        yield f"executed out of order: as number {cell.execution_count}, not {number}"
    if (lines := len(cell.source.splitlines())) > MAX_LINES:
        yield f"{lines} lines of code, over {MAX_LINES}"

    may_raise = "raises-exception" in cell.metadata.get("tags", [])
    if not may_raise and any(out.output_type == "error" for out in cell.outputs):
        yield "a stored error, and no tag raises-exception"
    texts = [ANSI.sub("", text) for out in cell.outputs for text in _texts(out)]
    if (lines := sum(len(text.splitlines()) for text in texts)) > MAX_OUTPUT_LINES:
        yield f"{lines} lines of output, over {MAX_OUTPUT_LINES}"
    for what, pattern in VOLATILE.items():
        if match := pattern.search("\n".join(texts)):
            yield f"the output holds {what}: {match[0]}"


def _texts(output: NotebookNode) -> Iterator[str]:
    if output.output_type == "stream":
        yield output.text
    elif output.output_type == "error":
        yield "\n".join(output.traceback)
    else:
        yield from (str(v) for kind, v in output.data.items() if kind[:5] == "text/")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 if `check` has found a problem."""
    description, *_ = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser("python -m tools.notebooks", None, description)
    parser.add_argument("command", choices=["check", "clean"])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILES")
    chosen = parser.parse_args(arguments)
    files = chosen.files or sorted(NOTEBOOKS.glob("*.ipynb"))

    bad = 0
    for path in files:
        try:
            if chosen.command == "check":
                for problem in problems(path):
                    print(f"{path.name}: {problem}")
                    bad += 1
            elif clean(path):
                print(f"{path.name}: cleaned")
        except NotebookError as error:
            print(error)
            bad += 1
    if chosen.command == "check" and not bad:
        print(f"{len(files)} notebooks are clean")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
