"""Carry the repository's address into the lessons' badges and setup cells.

    python -m tools.address                                  # after a change by hand
    python -m tools.address https://github.com/OWNER/NAME    # for a copy of your own

The address stands in pyproject.toml, [project.urls] Repository. Given one, the tool
writes it there first. Then the setup cell and the Colab badge of every lesson, and the
badges and `git clone` lines of README.md, follow it. All is worked out before anything
is written: an address that is none, or a lesson with no badge or no setup cell, ends it
with one line a fault and every file as it was.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from nbformat import NotebookNode

from tools import ROOT, NotebookError, notebook_text, read_notebook

PLACEHOLDER = "YOUR_NAME"
ADDRESS = re.compile(r"https://github\.com/[\w-]+/[\w.-]+")

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

BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{slug}/blob/main/notebooks/{lesson}.ipynb)"
)
ANY_BADGE = re.compile(
    r"\[!\[[^]]*\]\([^)]*colab-badge\.svg\)\]"
    r"\(https://colab\.research\.google\.com/github/[^)]*?/(?P<lesson>[^/)]+)\.ipynb\)"
)
ANY_CLONE = re.compile(r"(?<=git clone )" + ADDRESS.pattern)


class AddressError(ValueError):
    """The address is none, or a file has no place for it."""


def repository(root: Path = ROOT) -> str:
    """The address in pyproject.toml: "https://github.com/OWNER/NAME"."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return normalized(project["project"]["urls"]["Repository"])


def normalized(address: str) -> str:
    """The address as it is written everywhere, with no `.git` and no `/` at its end.

    Raises:
        AddressError: it is not like https://github.com/OWNER/NAME.
    """
    plain = address.removesuffix("/").removesuffix(".git")
    if not ADDRESS.fullmatch(plain):
        raise AddressError(
            f"not a repository's address: {address!r}. "
            "It should be like https://github.com/OWNER/NAME"
        )
    return plain


def setup_cell(address: str) -> str:
    """The setup cell of every lesson."""
    return SETUP.format(repository=address)


def badge(lesson: str, address: str) -> str:
    """The lesson's "Open in Colab" badge, in Markdown."""
    slug = address.removeprefix("https://github.com/")
    return BADGE.format(slug=slug, lesson=lesson)


def carried(root: Path, address: str) -> Iterator[tuple[Path, str]]:
    """The files of the course that the address changes, each with its new text.

    Raises:
        AddressError: a lesson has no badge in its first Markdown cell, or its first
            code cell is no setup cell: one line for each.
        NotebookError: a lesson can't be read.
    """
    faults = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = read_notebook(path)
        first: dict[str, NotebookNode] = {}
        for cell in notebook.cells:
            first.setdefault(cell.cell_type, cell)
        lesson, head, setup = path.stem, first.get("markdown"), first.get("code")
        if head is None or not ANY_BADGE.search(head.source):
            faults.append(
                f"{path.name}: the first Markdown cell lacks {badge(lesson, address)}"
            )
        elif setup is None or "LESSON" not in setup.source:
            faults.append(f"{path.name}: the first code cell is no setup cell")
        else:
            wanted = badge(lesson, address)
            head.source = ANY_BADGE.sub(lambda _, wanted=wanted: wanted, head.source)
            setup.source = setup_cell(lesson, address)
            yield path, notebook_text(notebook)
    if (readme := root / "README.md").exists():
        text = readme.read_text(encoding="utf-8")
        text = ANY_BADGE.sub(lambda match: badge(match["lesson"], address), text)
        yield readme, ANY_CLONE.sub(lambda _: address, text)
    if faults:
        raise AddressError("\n".join(faults))


def point(root: Path, address: str) -> list[Path]:
    """Make the address the repository's, everywhere; returns the files changed.

    Raises:
        AddressError: see `normalized` and `carried`; no file has been changed.
    """
    address = normalized(address)
    project = root / "pyproject.toml"
    text = re.sub(
        r'(?m)^(Repository = )".*"$',
        lambda match: f'{match[1]}"{address}"',
        project.read_text(encoding="utf-8"),
    )
    changed = [
        (path, text)
        for path, text in [(project, text), *carried(root, address)]
        if text != path.read_text(encoding="utf-8")
    ]
    for path, text in changed:
        path.write_text(text, encoding="utf-8")
    return [path for path, _ in changed]


def address_of_origin(root: Path) -> str | None:
    """The address of the git remote `origin`, if that is on github.com."""
    try:
        command = ["git", "-C", str(root), "remote", "get-url", "origin"]
        url = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        return None
    url = re.sub(r"^(ssh://)?git@github\.com[:/]", "https://github.com/", url)
    try:
        return normalized(url)
    except AddressError:
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Raises SystemExit with one line a fault."""
    description, *_ = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser("python -m tools.address", None, description)
    parser.add_argument("url", nargs="?", metavar="URL")
    url = parser.parse_args(arguments).url
    try:
        address = normalized(url) if url else repository()
        changed = point(ROOT, address)
    except (AddressError, NotebookError) as error:
        sys.exit(str(error))
    for path in changed:
        print(f"{path.relative_to(ROOT)}: {address}")
    if not changed:
        print(f"All agree already: {address}")
    if PLACEHOLDER in address and (origin := address_of_origin(ROOT)):
        print(f"That is a placeholder. For your own: make address URL={origin}")


if __name__ == "__main__":
    main()
