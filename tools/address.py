"""Carry your repository's address into badges, setup cells and `git clone` lines.

    python -m tools.address https://github.com/OWNER/NAME

The address in pyproject.toml, [project.urls] Repository, is the one that is replaced:
there, and wherever else it stands in the files below.
"""

import re
import sys
import tomllib
from pathlib import Path

from tools import ROOT

FILES = (
    "pyproject.toml",
    "README*.md",
    "notebooks/**/*.ipynb",
    "docs/**/*.md",
    "docs/**/*.yml",
    "locale/**/*.po",
)
GITHUB = "https://github.com/"
ADDRESS = re.compile(GITHUB + r"[\w-]+/[\w.-]*[\w-]")

# The same in all lessons. Not `pip install -e`: a running kernel does not see that.
SETUP = """\
import os, sys

beside = [folder for folder in ("..", "../..") if os.path.isdir(f"{{folder}}/helpers")]
COURSE = beside[0] if beside else "drive/MyDrive/pytorch-models-course"
if not os.path.isdir(COURSE):  # neither beside this notebook nor in your Drive
    COURSE = "pytorch-models-course"
    !test -d {{COURSE}} || git clone -q --depth 1 {repository} {{COURSE}}
if not beside:  # what Colab lacks
    %pip install --quiet --no-deps -r {{COURSE}}/requirements-colab.txt
sys.path.insert(0, os.path.abspath(COURSE))"""
# One line more in a translation: what exercises say follows the notebook's language.
LANGUAGE = '\nos.environ["COURSE_LANGUAGE"] = "{language}"'

BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{slug}/blob/main/notebooks/{lesson}.ipynb)"
)


def repository(root: Path = ROOT) -> str:
    """The address in pyproject.toml: "https://github.com/OWNER/NAME"."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["urls"]["Repository"]


def setup_cell(address: str, language: str = "") -> str:
    """The setup cell of every lesson, or of every lesson's translation."""
    more = LANGUAGE.format(language=language) if language else ""
    return SETUP.format(repository=address) + more


def badge(lesson: str, address: str) -> str:
    """The "Open in Colab" badge, in Markdown, of "01_summary" or "deeper/01_x"."""
    return BADGE.format(slug=address.removeprefix(GITHUB), lesson=lesson)


def move(address: str, root: Path = ROOT) -> list[Path]:
    """Make the address the repository's, everywhere; returns the files changed.

    Raises:
        ValueError: it is not like https://github.com/OWNER/NAME; nothing is changed.
    """
    address = address.removesuffix("/").removesuffix(".git")
    if not ADDRESS.fullmatch(address):
        raise ValueError(f"not like {GITHUB}OWNER/NAME: {address!r}")
    old, new = (url.removeprefix(GITHUB) for url in (repository(root), address))
    # github.com/OWNER/NAME, and Colab's /github/OWNER/NAME; not /OWNER/NAME-2
    place = re.compile(rf"(github(?:\.com)?/){re.escape(old)}(?![\w-]|\.(?!git\b)\w)")
    changed = []
    for path in sorted(file for pattern in FILES for file in root.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        moved = place.sub(lambda match: match[1] + new, text)
        if moved != text:
            path.write_text(moved, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"make address URL={GITHUB}OWNER/NAME; it is {repository()} now")
    try:
        for path in move(sys.argv[1]):
            print(path.relative_to(ROOT))
    except ValueError as error:
        sys.exit(str(error))
