"""Make the site: pages of all lessons, the cheat sheet, and the pages of docs/.

    python -m tools.site      # from the stored outputs, into build/site/

Sphinx (docs/conf.py) reads a copy of the sources in build/source/, where notebooks that
have just run stand for the stored ones. There the setup is folded, and each exercise
gets its hints and its solution, to be unfolded.
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from exercises import all_exercises
from tools import (
    ROOT,
    lesson_files,
    lesson_name,
    notebook_text,
    read_notebook,
)
from tools.address import repository

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SITE, SOURCE = ROOT / "build" / "site", ROOT / "build" / "source"
FOLDED = ("setup", "imports")
CHECK = re.compile(r"\bex\.(\w+)\.check\(")
# A row of README's tables of lessons
ROW = re.compile(
    r"^\| \[(?P<title>[^]]+)\]\(notebooks/(?P<name>[\w/]+)\.ipynb\) \|"
    r" (?P<about>.*?) \| (?:about )?(?P<minutes>\d+) min \|",
    re.M,
)
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)")


def build(
    executed: Mapping[str, NotebookNode] | None = None,
    site: Path = SITE,
    source: Path = SOURCE,
) -> int:
    """Build the site; returns Sphinx's exit status, which a warning makes 1.

    Args:
        executed: notebooks by lesson, "01_summary"; the others are shown as stored.
    """
    from sphinx.cmd.build import main as sphinx_build  # not there with Colab's versions

    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(site, ignore_errors=True)
    notebooks = {
        lesson_name(file): read_notebook(file)
        for file in lesson_files() + lesson_files(["deeper"])
    } | dict(executed or {})
    for lesson, notebook in notebooks.items():
        file = source / "notebooks" / f"{lesson}.ipynb"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(notebook_text(notebook), encoding="utf-8")
    core = {lesson: nb for lesson, nb in notebooks.items() if "/" not in lesson}
    pages = {file.name: file.read_text("utf-8") for file in ROOT.glob("docs/*.md")}
    readme = (ROOT / "README.md").read_text("utf-8")
    for kind, text in zip(("core", "deeper"), cards(readme), strict=True):
        pages["index.md"] = pages["index.md"].replace(f"<!-- {kind} -->", text)
    pages["cheat_sheet.md"] = cheat_sheet(core)
    for name, text in pages.items():
        # docs/index.md is the site's front page: what lay beside docs/ lies beside it
        (source / name).write_text(text.replace("](../", "]("), encoding="utf-8")
    shutil.copy(ROOT / "docs" / "vgg19.png", source / "vgg19.png")
    conf = str(ROOT / "docs")
    options = ["-b", "html", "-q", "-W", "--keep-going", "-c", conf]
    return sphinx_build(
        [*options, "-d", str(source / ".doctrees"), str(source), str(site)]
    )


def cards(readme: str) -> tuple[str, str]:
    """The core lessons and the deeper ones, each a card, of README's tables."""
    found: dict[bool, list[str]] = {False: [], True: []}
    for row in ROW.finditer(readme):
        link = f":link: notebooks/{row['name']}\n:link-type: doc"
        footer = f":::{{card-footer}}\n{row['minutes']} minutes\n:::"
        card = f"{link}\n\n{row['about']}\n\n{footer}"
        card = f"::::{{grid-item-card}} {row['title']}\n{card}\n::::"
        found["/" in row["name"]].append(card)
    grid = ":::::{{grid}} 1 1 2 2\n:gutter: 3\n\n{}\n:::::"
    return tuple(grid.format("\n\n".join(found[deeper])) for deeper in (False, True))


def cheat_sheet(core: Mapping[str, NotebookNode]) -> str:
    """The cells `in-short` of the core lessons, one below the other."""
    parts = [
        "# Cheat sheet\n\nThe recipes of all core lessons, each from its lesson.\n"
    ]
    for lesson, notebook in core.items():
        title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
        short = next(cell.source for cell in notebook.cells if cell.id == "in-short")
        recipe = re.sub(r"\A(#+|\*\*)[^\n]*\n", "", short)
        parts.append(f"## [{title}](notebooks/{lesson}.ipynb)\n{recipe}\n")
    return "\n".join(parts)


def prepare(app: "Sphinx", docname: str, content: list[str]) -> None:
    """Sphinx's `source-read`: change how a lesson is shown, and not its file."""
    folder = Path(docname).parent

    def shown(markdown: str) -> str:
        markdown = LINK.sub(lambda match: elsewhere(match[1], folder), markdown)
        return markdown.replace("```python\n", "```ipython3\n")

    if folder.parts[:1] != ("notebooks",):
        content[0] = shown(content[0])
        return
    notebook = nbformat.reads(content[0], as_version=4)
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
    lesson = f"lesson_{Path(docname).name[:2]}"
    known = {ex.name: ex for ex in all_exercises() if ex.lesson == lesson}
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.id in FOLDED:
            cell.metadata.tags = [*cell.metadata.get("tags", []), "hide-input"]
        if cell.cell_type == "markdown":
            cell.source = shown(cell.source)
        elif name := CHECK.search(cell.source):
            exercise = known[name[1]]
            boxes = [
                f":::{{dropdown}} Hint {number}\n{hint}\n:::"
                for number, hint in enumerate(exercise.hints, start=1)
            ]
            text = exercise.solution.text.strip()
            boxes.append(f":::{{dropdown}} Solution\n```python\n{text}\n```\n:::")
            cells.append(new_markdown_cell("\n\n".join(boxes), id=f"{cell.id}-help"))
    notebook.cells = cells
    content[0] = nbformat.writes(notebook)


def elsewhere(link: str, folder: Path) -> str:
    """The link, or, if it leads to no page of the site, its place in the repository.

    One that leads nowhere stays, and Sphinx warns about it.
    """
    path = os.path.normpath(folder / link)
    beside = {"cheat_sheet.md", *(file.name for file in ROOT.glob("docs/*.*"))}
    if path in beside or path.endswith(".ipynb") or not (ROOT / path).exists():
        return link
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{repository()}/{kind}/main/{path}"


def setup(app: "Sphinx") -> dict[str, bool]:
    """Called by Sphinx, for which this module is an extension."""
    app.connect("source-read", prepare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    if status := build():
        sys.exit(status)
    print(f"Pages: {SITE / 'index.html'}")
