"""What maintainers run, each as `python -m tools.NAME`; the Makefile calls them."""

import json
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"


class NotebookError(ValueError):
    """The file can't be read as a notebook; the message names it."""


def lesson_files(names: Iterable[str], folder: Path = NOTEBOOKS) -> list[Path]:
    """The named lessons' notebooks in the order given; all of them by name if none is.

    Args:
        names: "01_summary"; the notebook's own name or path will do too.

    Raises:
        SystemExit: a name is no lesson's, or there are no lessons.
    """
    lessons = {file.stem: file for file in sorted(folder.glob("*.ipynb"))}
    if not lessons:
        raise SystemExit(f"There are no lessons in {folder}.")
    wanted = [Path(name).name.removesuffix(".ipynb") for name in names]
    if unknown := [name for name in wanted if name not in lessons]:
        raise SystemExit(
            f"No such lesson: {', '.join(unknown)}. There are: {', '.join(lessons)}."
        )
    return [lessons[name] for name in wanted or lessons]


def read_notebook(path: Path) -> NotebookNode:
    """The notebook as it stands: nbformat.read would mend what a check is to find.

    Raises:
        NotebookError: the file can't be read, or is no notebook of format 4.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if json.loads(text)["nbformat"] != 4:
            raise NotebookError(f"{path}: not a notebook of format 4")
        return nbformat.v4.reads(text)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise NotebookError(f"{path}: not readable as a notebook: {error}") from None
    except (KeyError, TypeError, AttributeError):  # JSON of another kind
        raise NotebookError(f"{path}: not a notebook of format 4") from None


def notebook_text(notebook: NotebookNode) -> str:
    """What stands in the file: nbformat's own layout, and an end of line at the end."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"
