"""What README.md says of the lessons and shows of them is what they are."""

import re
import tomllib

from tools import (
    NOTEBOOKS,
    ROOT,
    all_notebooks,
    lesson_files,
    lesson_name,
    read_notebook,
)
from tools.picture import PICTURE, stored_figure
from tools.site import ROW

README = (ROOT / "README.md").read_text("utf-8")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def lessons():
    deeper = sorted((NOTEBOOKS / "deeper").glob("*.ipynb"))
    return {lesson_name(file): read_notebook(file) for file in lesson_files() + deeper}


def test_readme_lists_every_lesson_in_order_with_its_title_and_its_time():
    listed = [
        (row["name"], row["title"], row["minutes"]) for row in ROW.finditer(README)
    ]
    found = []
    for name, notebook in lessons().items():
        head = notebook.cells[0].source
        title = head.splitlines()[0].removeprefix("# ")
        found.append((name, title, re.search(r"\d+ min(?=utes)", head)[0]))
    assert listed == found


def test_readme_shows_the_figure_that_the_lesson_stores():
    assert PICTURE.read_bytes() == stored_figure(), "run: python -m tools.picture"


def test_links_between_files_lead_somewhere():
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    texts = {page: page.read_text("utf-8") for page in pages}
    for file in all_notebooks():
        cells = read_notebook(file).cells
        texts[file] = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    missing = [
        f"{file.name}: {link}"
        for file, text in texts.items()
        for link in LINK.findall(text)
        if not link.startswith(("http", "#"))
        and link != "cheat_sheet.md"  # the site's: made from the notebooks
        and not (file.parent / link.partition("#")[0]).exists()
    ]
    assert not missing


def test_commands_that_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, re.M))
    # in `code`, in an indented line, never in prose ("make room")
    named = set(re.findall(r"(?:`|^    )make ([a-z][a-z-]*)", README, re.M))
    assert {"course", "deeper", "test", "lab"} <= named <= targets


def test_python_versions_are_those_of_pyproject_and_ci():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert "Python 3.11, 3.12 or 3.13" in README
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8")
    assert 'python-version: ["3.11", "3.12", "3.13"]' in workflow
