"""Keep the notebooks clean, so that a diff shows what an author changed.

    python -m tools.notebooks check [FILES]   # print every problem; exit 1 if any
    python -m tools.notebooks clean [FILES]   # strip metadata, renew the setup cell

FILES are all notebooks in notebooks/ and its folders if left out. `check` covers what
`clean` does not mend too: cells not executed in order, ids that say nothing, this
machine's paths in outputs, cells and outputs that are too long.
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

from tools import (
    all_notebooks,
    language,
    lesson_name,
    notebook_text,
    read_notebook,
)
from tools.address import badge, repository, setup_cell

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Not nbval-skip: every cell of a lesson runs.
TAGS = ("nbval-ignore-output", "raises-exception")
MAX_LINES, MAX_OUTPUT_LINES = 20, 40

# Words, and not what nbformat (8 digits) and JupyterLab (a UUID) call a new cell
ID = re.compile(
    r"(?!(?:[0-9a-f]{8}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$)"
    r"(?=.{1,40}$)[a-z][a-z0-9]*(-[a-z0-9]+)*"
)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
VOLATILE = {
    "an address": re.compile(r"\b0x[0-9a-fA-F]{6,}"),
    # Two components at least ("and/or" and "</td>" are none), and not within a URL or
    # the home folder, which ~ names on every machine
    "an absolute path": re.compile(r"(?<![\w.:/<~-])/[\w.+-]+/[\w./+-]*|\b[A-Z]:\\\w+"),
    "a path of the kernel's": re.compile(r"ipykernel_\d+|ipython-input|site-packages"),
}


def clean(path: Path) -> bool:
    """Reduce metadata to the allow-list, renew the setup cell; whether that changed it.

    Raises:
        ValueError: the file is no valid notebook.
    """
    notebook = read_notebook(path)
    if error := next(iter_validate(notebook), None):
        raise ValueError(f"{path}: not a valid notebook: {error.message}")
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = [tag for tag in cell.metadata.get("tags", []) if tag in TAGS]
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.get("id") == "setup":
            cell.source = setup_cell(repository(), language(path))
    text = notebook_text(notebook)
    if text == path.read_text(encoding="utf-8"):
        return False
    path.write_text(text, encoding="utf-8")
    return True


def problems(path: Path) -> Iterator[str]:
    """Everything that `check` has against the notebook, as "cell-id: problem"."""
    notebook = read_notebook(path)
    if errors := [
        f"not a valid notebook: {e.message}" for e in iter_validate(notebook)
    ]:
        yield from errors  # the rules below need a valid notebook
        return
    if notebook.metadata != METADATA:
        yield "metadata is not on the allow-list (`make format` strips it)"
    cells, address = notebook.cells, repository()
    wanted = badge(lesson_name(path), address)
    if not cells or wanted not in cells[0].source:
        yield f"the first cell lacks the badge {wanted}"
    code_cells = [cell for cell in cells if cell.cell_type == "code"]
    if not code_cells or code_cells[0].source != setup_cell(address, language(path)):
        yield "the first code cell is not tools.address's setup cell, of id `setup`"

    times_used = Counter(cell.id for cell in cells)
    for cell in cells:
        if times_used[cell.id] > 1:
            yield f"{cell.id}: several cells have this id"
        yield from (f"{cell.id}: {problem}" for problem in _cell_problems(cell))
    for number, cell in enumerate(code_cells, start=1):
        yield from (f"{cell.id}: {problem}" for problem in _code_problems(cell, number))
    # Last, as nbformat mends what it writes
    if path.read_text(encoding="utf-8") != notebook_text(notebook):
        yield "not written in nbformat's layout (`make format` does it)"


def _cell_problems(cell: NotebookNode) -> Iterator[str]:
    if not ID.fullmatch(cell.id):
        yield "the id should be words, such as load-strict, of 40 letters at most"
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
    if (lines := sum(map(bool, cell.source.splitlines()))) > MAX_LINES:
        yield f"{lines} lines of code, over {MAX_LINES}"

    may_raise = "raises-exception" in cell.metadata.get("tags", [])
    if not may_raise and any(out.output_type == "error" for out in cell.outputs):
        yield "a stored error, and no tag raises-exception"
    text = "".join(ANSI.sub("", _plain_text(out)) + "\n" for out in cell.outputs)
    if (lines := len(text.splitlines())) > MAX_OUTPUT_LINES:
        yield f"{lines} lines of output, over {MAX_OUTPUT_LINES}"
    for what, pattern in VOLATILE.items():
        if match := pattern.search(text):
            yield f"the output holds {what}: {match[0]}"


def _plain_text(output: NotebookNode) -> str:
    """What is read as text: not the HTML and JavaScript of a table or a quiz."""
    if output.output_type == "stream":
        return output.text.removesuffix("\n")
    if output.output_type == "error":
        return "\n".join(output.traceback)
    return output.data.get("text/plain", "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 if a problem was found."""
    parser = argparse.ArgumentParser("python -m tools.notebooks", None, __doc__)
    parser.add_argument("command", choices=["check", "clean"])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILES")
    chosen = parser.parse_args(arguments)
    files, bad = chosen.files or all_notebooks(), 0
    for path in files:
        try:
            if chosen.command == "clean":
                if clean(path):
                    print(f"{path.name}: cleaned")
                continue
            for problem in problems(path):
                print(f"{lesson_name(path)}: {problem}")
                bad += 1
        except ValueError as error:
            print(error)
            bad += 1
    if chosen.command == "check" and not bad:
        print(f"{len(files)} notebooks are clean")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
