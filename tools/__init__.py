"""What maintainers run, each as `python -m tools.NAME`; the Makefile calls them."""

from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
LANGUAGES = ("ko",)  # of translations, each a folder of notebooks/


def lesson_files(names: Iterable[str] = (), folder: Path = NOTEBOOKS) -> list[Path]:
    """The named lessons' notebooks; the core lessons' if none is named.

    Args:
        names: "01_summary", "deeper/01_what_summaries_miss", or "deeper" for all of
            that folder; a notebook's path will do too.

    Raises:
        SystemExit: a name is no lesson's, or there are no lessons.
    """
    files = [file for name in names or ["."] for file in _named(name, folder)]
    if not files:
        raise SystemExit(f"There are no lessons in {folder}.")
    return files


def _named(name: str, folder: Path) -> list[Path]:
    name = name.removesuffix(".ipynb").removeprefix(f"{folder.name}/")
    if (folder / name).is_dir():
        return sorted((folder / name).glob("*.ipynb"))
    if not (file := folder / f"{name}.ipynb").is_file():
        found = ", ".join(lesson_name(file) for file in all_notebooks(folder))
        raise SystemExit(f"No such lesson: {name}. There are: {found}.")
    return [file]


def all_notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    """Every notebook of the course: core lessons, deeper ones, translations."""
    return sorted(folder.glob("*.ipynb")) + sorted(folder.glob("[!.]*/*.ipynb"))


def lesson_name(file: Path) -> str:
    """The path within notebooks/: "01_summary", "deeper/01_what_summaries_miss"."""
    path = file.absolute().with_suffix("").as_posix()
    return path.rpartition("/notebooks/")[2]


def language(file: Path) -> str:
    """The language of a translated lesson's notebook; "" of the original."""
    return file.parent.name if file.parent.name in LANGUAGES else ""


def read_notebook(path: Path) -> NotebookNode:
    """The notebook as it stands: nbformat.read would mend what a check is to find.

    Raises:
        ValueError: the file is no notebook of format 4; the message names it.
    """
    try:
        return nbformat.v4.reads(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a notebook of format 4: {error!r}") from None


def notebook_text(notebook: NotebookNode) -> str:
    """What stands in the file: nbformat's own layout, and an end of line at the end."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"
