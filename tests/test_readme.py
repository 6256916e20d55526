"""What README.md says of the lessons and shows of them is what they are."""

import re

from tools import NOTEBOOKS, ROOT, read_notebook
from tools.picture import PICTURE, stored_figure

README = (ROOT / "README.md").read_text("utf-8")


def test_readme_lists_every_lesson_in_order_under_its_own_title():
    listed = re.findall(r"\[(\d\d · [^]]+)\]\(notebooks/(\w+)\.ipynb\)", README)
    lessons = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert lessons
    titles = [
        (read_notebook(file).cells[0].source.splitlines()[0].removeprefix("# "), file)
        for file in lessons
    ]
    assert listed == [(title, file.stem) for title, file in titles]


def test_readme_shows_the_figure_that_the_lesson_stores():
    assert PICTURE.read_bytes() == stored_figure(), "run: python -m tools.picture"


def test_lessons_link_to_the_one_before_and_the_one_after():
    lessons = [file.name for file in sorted(NOTEBOOKS.glob("*.ipynb"))]
    for number, name in enumerate(lessons):
        last_cell = read_notebook(NOTEBOOKS / name).cells[-1].source
        linked = re.findall(r"\((\w+\.ipynb)\)", last_cell)
        assert (
            linked == lessons[max(number - 1, 0) : number] + lessons[number + 1 :][:1]
        )


def test_commands_that_the_readme_names_exist():
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    named = set(re.findall(r"`?make ([a-z-]+)`?", README)) - {"do", "room"}
    assert named <= set(targets)
    assert {"course", "test", "lab"} <= named
