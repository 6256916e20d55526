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
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from exercises import _, all_exercises, speaking
from tools import (
    LANGUAGES,
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
TITLES = {"en": ("Hint", "Solution"), "ko": ("힌트", "풀이")}
CHECK = re.compile(r"\bex\.(\w+)\.check\(")
# A row of README's tables of lessons
ROW = re.compile(
    r"^\| \[(?P<title>[^]]+)\]\(notebooks/(?P<name>[\w/]+)\.ipynb\) \|"
    r" (?P<about>.*?) \| (?P<minutes>\d+ ?(?:min|분)) \|",
    re.M,
)
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)")


def build(
    executed: Mapping[str, NotebookNode] | None = None,
    site: Path = SITE,
    source: Path = SOURCE,
) -> int:
    """Build the site, and each translation in its folder; 1 if Sphinx warned, else 0.

    Args:
        executed: notebooks by lesson, "01_summary"; the others are shown as stored.
    """
    from tools import translate

    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(site, ignore_errors=True)
    notebooks = {
        lesson_name(file): read_notebook(file)
        for file in lesson_files() + lesson_files(["deeper"])
    } | dict(executed or {})
    pages = {file.name: file.read_text("utf-8") for file in ROOT.glob("docs/*.md")}
    readme = (ROOT / "README.md").read_text("utf-8")
    status = build_one("en", notebooks, pages, readme, site, source / "en")
    for spoken in LANGUAGES:
        notebooks = {
            lesson: translate.translated_notebook(nb, Path(lesson).name, spoken)
            for lesson, nb in notebooks.items()
        }
        for name in set(translate.PAGES) - {"README"}:
            pages[f"{name}.md"] = translate.translated_page(name, spoken)
        readme = translate.translated_page("README", spoken)
        folders = site / spoken, source / spoken
        status |= build_one(spoken, notebooks, pages, readme, *folders)
    return status


def build_one(
    spoken: str,
    notebooks: Mapping[str, NotebookNode],
    pages: Mapping[str, str],
    readme: str,
    site: Path,
    source: Path,
) -> int:
    """Build the pages of one language; returns Sphinx's exit status."""
    from sphinx.cmd.build import main as sphinx_build  # not there with Colab's versions

    for lesson, notebook in notebooks.items():
        file = source / "notebooks" / f"{lesson}.ipynb"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(notebook_text(notebook), encoding="utf-8")
    core = {lesson: nb for lesson, nb in notebooks.items() if "/" not in lesson}
    marks = dict(zip(("core", "deeper"), cards(readme), strict=True))
    marks["recipes"] = recipes(core)
    for name, text in pages.items():
        for mark, made in marks.items():
            text = text.replace(f"<!-- {mark} -->", made)
        # docs/index.md is the site's front page: what lay beside docs/ lies beside it
        (source / name).write_text(text.replace("](../", "]("), encoding="utf-8")
    shutil.copy(ROOT / "docs" / "vgg19.png", source / "vgg19.png")
    title = pages["index.md"].splitlines()[0].removeprefix("# ")
    options = ["-b", "html", "-q", "-W", "--keep-going", "-c", str(ROOT / "docs")]
    options += ["-D", f"language={spoken}", "-D", f"html_title={title}"]
    return sphinx_build(
        [*options, "-d", str(source / ".doctrees"), str(source), str(site)]
    )


def cards(readme: str) -> tuple[str, str]:
    """The core lessons and the deeper ones, each a card, of README's tables."""
    found: dict[bool, list[str]] = {False: [], True: []}
    for row in ROW.finditer(readme):
        link = f":link: notebooks/{row['name']}\n:link-type: doc"
        footer = f":::{{card-footer}}\n{row['minutes']}\n:::"
        card = f"{link}\n\n{row['about']}\n\n{footer}"
        card = f"::::{{grid-item-card}} {row['title']}\n{card}\n::::"
        found["/" in row["name"]].append(card)
    grid = ":::::{{grid}} 1 1 2 2\n:gutter: 3\n\n{}\n:::::"
    return tuple(grid.format("\n\n".join(found[deeper])) for deeper in (False, True))


def recipes(core: Mapping[str, NotebookNode]) -> str:
    """The cells `in-short` of the core lessons, one below the other."""
    parts = []
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
    hint_title, solution_title = TITLES[app.config.language]
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.id in FOLDED:
            cell.metadata.tags = [*cell.metadata.get("tags", []), "hide-input"]
        if cell.cell_type == "markdown":
            cell.source = shown(cell.source)
        elif name := CHECK.search(cell.source):
            exercise = known[name[1]]
            with speaking(app.config.language):
                hints = [_(hint) for hint in exercise.hints]
            boxes = [
                f":::{{dropdown}} {hint_title} {number}\n{hint}\n:::"
                for number, hint in enumerate(hints, start=1)
            ]
            text = exercise.solution.text.strip()
            boxes.append(
                f":::{{dropdown}} {solution_title}\n```python\n{text}\n```\n:::"
            )
            cells.append(new_markdown_cell("\n\n".join(boxes), id=f"{cell.id}-help"))
    notebook.cells = cells
    content[0] = nbformat.writes(notebook)


def elsewhere(link: str, folder: Path) -> str:
    """The link, or, if it leads to no page of the site, its place in the repository.

    One that leads nowhere stays, and Sphinx warns about it.
    """
    path = os.path.normpath(folder / link)
    beside = {file.name for file in ROOT.glob("docs/*.*")}
    if path in beside or path.endswith(".ipynb") or not (ROOT / path).exists():
        return link
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{repository()}/{kind}/main/{path}"


def add_switch(
    app: "Sphinx", page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Sphinx's `html-page-context`: where this page is in the other language."""
    up = "../" * page.count("/")
    if app.config.language == "en":
        context["switch"] = ("한국어", "ko", f"{up}ko/{page}.html")
    else:
        context["switch"] = ("English", "en", f"{up}../{page}.html")


def setup(app: "Sphinx") -> dict[str, bool]:
    """Called by Sphinx, for which this module is an extension."""
    app.connect("source-read", prepare)
    app.connect("html-page-context", add_switch)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    if status := build():
        sys.exit(status)
    print(f"Pages: {SITE / 'index.html'}")
