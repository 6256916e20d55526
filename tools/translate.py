"""Keep the Korean edition in step with the English one, by gettext catalogues.

    python -m tools.translate          # merge what changed, write the Korean edition
    python -m tools.translate check    # print every problem; exit 1 if any

A catalogue, locale/ko/LC_MESSAGES/01_summary.po, holds a lesson's Markdown cells, each
with its cell id as context, and what its exercises say (exercises/lesson_01.py). A cell
that changed becomes fuzzy, a new one is empty, and `check` fails until a translator has
mended it. What is written from the catalogues: notebooks/ko/, README.ko.md, and beside
each catalogue its .mo file, which the exercises read. tools.site shows the pages.

`check` also compares what a translation must leave as it is: links, code, numbers,
headings and placeholders.
"""

import argparse
import copy
import importlib
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from babel.messages import Catalog
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbformat import NotebookNode
from nbformat.v4 import new_output

import exercises
from tools import (
    LANGUAGES,
    NOTEBOOKS,
    ROOT,
    lesson_files,
    notebook_text,
    read_notebook,
)
from tools.address import repository, setup_cell

(LANGUAGE,) = LANGUAGES
LOCALE = ROOT / "locale"
# Pages of which each paragraph is a message; `exercises`: what all exercises say
PAGES = {
    "README": ROOT / "README.md",
    "index": ROOT / "docs" / "index.md",
    "cheat_sheet": ROOT / "docs" / "cheat_sheet.md",
    "glossary": ROOT / "docs" / "glossary.md",
}
Message = tuple[str | None, str]  # context, text
# README's second line, and that of its translation
SWITCH = {
    "en": "**English** · [한국어](README.ko.md)",
    "ko": "[English](README.md) · **한국어**",
}

LINK = re.compile(r"(?<=\]\()([^)\s]+)")
CODE = re.compile(r"(?ms)^```.*?^```|`[^`\n]+`")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
PLACEHOLDER = re.compile(r"\{[^{}]*\}")
QUIZ = re.compile(r"\bex\.quiz\(\"(\w+)\"\)")
CHECK = re.compile(r"\bex\.(\w+)\.check\(")


# --- what is to be translated -----------------------------------------------------


def lessons() -> dict[str, Path]:
    """Name -> notebook, of the core lessons and the deeper ones."""
    return {file.stem: file for file in lesson_files() + lesson_files(["deeper"])}


def sources() -> dict[str, list[Message]]:
    """The messages of every catalogue, by its name."""
    found: dict[str, list[Message]] = {}
    for name, file in lessons().items():
        cells = read_notebook(file).cells
        found[name] = [(c.id, c.source) for c in cells if c.cell_type == "markdown"]
        if file.parent == NOTEBOOKS:
            found[name] += exercise_messages(f"lesson_{name[:2]}")
    for name, page in PAGES.items():
        text = page.read_text("utf-8")
        found[name] = [(None, block) for block in blocks(text) if not is_plain(block)]
    found["exercises"] = python_messages(ROOT / "exercises" / "__init__.py")
    return found


def blocks(text: str) -> list[str]:
    """Paragraphs, lists, tables, a glossary's terms: what blank lines part."""
    return re.split(r"\n{2,}", text.strip("\n"))


def is_plain(block: str) -> bool:
    """Whether there is nothing to translate: commands, a mark, a list of files."""
    return block.startswith(("    ", "<!--", "notebooks/", SWITCH["en"]))


def exercise_messages(module_name: str) -> list[Message]:
    """Questions, answers, feedback, hints, and what `Wrong` says, each once."""
    module = importlib.import_module(f"exercises.{module_name}")
    texts = []
    for questions in module.QUIZZES.values():
        for question in questions:
            texts.append(question["question"])
            for answer in question["answers"]:
                texts += [answer["answer"], answer["feedback"]]
    for value in vars(module).values():
        if isinstance(value, exercises.Exercise):
            texts += value.hints
    texts = [(None, text) for text in texts]
    return list(dict.fromkeys(texts + python_messages(Path(module.__file__))))


def python_messages(file: Path) -> list[Message]:
    with file.open("rb") as source:
        found = list(extract("python", source, {"Wrong": None, "_": None, "N_": None}))
    return [(None, text) for _, text, _, _ in found]


# --- catalogues --------------------------------------------------------------------


def catalogue_file(name: str, language: str = LANGUAGE) -> Path:
    return LOCALE / language / "LC_MESSAGES" / f"{name}.po"


def new_catalogue(language: str) -> Catalog:
    catalogue = Catalog(language, project="pytorch-models-course", fuzzy=False)
    catalogue.header_comment = "# Written by `make translate`; translate msgstr only."
    return catalogue


def read_catalogue(name: str, language: str = LANGUAGE) -> Catalog:
    """The catalogue as it stands; empty if there is none."""
    file = catalogue_file(name, language)
    if not file.exists():
        return new_catalogue(language)
    with file.open("rb") as stored:
        return read_po(stored, locale=language)


def merge(catalogue: Catalog, messages: Sequence[Message]) -> None:
    """Bring it up to date: a changed original makes its translation fuzzy."""
    template = Catalog(creation_date=catalogue.creation_date)
    for context, text in messages:
        template.add(text, context=context)
    before = {m.context: m for m in catalogue if m.id and m.context}
    catalogue.update(template, update_creation_date=False)
    catalogue.obsolete.clear()
    for message in catalogue:
        # Babel looks for a similar text; a cell is the same one by its id
        old = before.get(message.context)
        if message.id and not message.string and old and old.string:
            message.string, message.previous_id = old.string, [old.id]
            message.flags.add("fuzzy")


def catalogue_text(catalogue: Catalog) -> bytes:
    buffer = io.BytesIO()
    write_po(buffer, catalogue, width=100, no_location=True, include_previous=True)
    return buffer.getvalue()


def spoken_files(language: str = LANGUAGE) -> dict[Path, bytes]:
    """The .mo files: what exercises say. Nothing else is read at run time."""
    return {
        catalogue_file(name, language).with_suffix(".mo"): machine_text(
            read_catalogue(name, language)
        )
        for name, messages in sources().items()
        if name not in PAGES and any(context is None for context, _ in messages)
    }


def machine_text(catalogue: Catalog) -> bytes:
    spoken = Catalog(locale=catalogue.locale, creation_date=catalogue.creation_date)
    spoken.revision_date = catalogue.creation_date
    for message in catalogue:
        if message.id and message.string and not message.context:
            spoken.add(message.id, message.string, flags=message.flags)
    buffer = io.BytesIO()
    write_mo(buffer, spoken)
    return buffer.getvalue()


# --- what is written from them ------------------------------------------------------


def translator(catalogue: Catalog) -> Callable[[str | None, str], str]:
    """Context and text -> its translation; the text itself where there is none."""

    def translate(context: str | None, text: str) -> str:
        message = catalogue.get(text, context)
        usable = message and message.string and not message.fuzzy
        return message.string if usable else text

    return translate


def translated_notebook(
    notebook: NotebookNode, name: str, language: str = LANGUAGE
) -> NotebookNode:
    """The notebook with its text, and what its exercises show, in another language.

    Links stay as they are but the badge, which opens the translation.
    """
    translate = translator(read_catalogue(name, language))
    notebook = copy.deepcopy(notebook)
    english = f"{repository().removeprefix('https://github.com/')}/blob/main/notebooks/"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = translate(cell.id, cell.source)
            badge = rf"({re.escape(english)})(?:deeper/)?({name}\.ipynb)"
            cell.source = re.sub(badge, rf"\g<1>{language}/\2", text)
        elif cell.id == "setup":
            cell.source = setup_cell(repository(), language)
        else:
            cell.outputs = spoken_outputs(cell, name, language)
    return notebook


def spoken_outputs(cell: NotebookNode, name: str, language: str) -> list[NotebookNode]:
    """The cell's outputs; what an exercise or a quiz printed, in the language."""
    module = importlib.import_module(f"exercises.lesson_{name[:2]}")
    with exercises.speaking(language):
        if quiz := QUIZ.search(cell.source):
            InteractiveShell.instance()  # where there is none, display() only prints
            with capture_output() as captured:
                module.quiz(quiz[1])
            return [
                new_output("display_data", shown.data, metadata=shown.metadata)
                for shown in captured.outputs
            ]
        if (check := CHECK.search(cell.source)) and cell.outputs:
            with capture_output() as captured:
                getattr(module, check[1]).check(None)
            return [new_output("stream", name="stdout", text=captured.stdout)]
    return cell.outputs


def in_one_folder(text: str, folder: Path, language: str = LANGUAGE) -> str:
    """Links of an English lesson in `folder` as seen from notebooks/ko/."""
    here = NOTEBOOKS / language

    def link(match: re.Match[str]) -> str:
        path, mark, anchor = match[1].partition("#")
        if not path or "://" in path:
            return match[0]
        target = Path(os.path.normpath(folder / path))
        if target.suffix == ".ipynb" and NOTEBOOKS in target.parents:
            target = here / target.name
        elif target == PAGES["README"]:
            target = target.with_suffix(f".{language}.md")
        return os.path.relpath(target, here) + mark + anchor

    return LINK.sub(link, text)


def translated_page(name: str, language: str = LANGUAGE) -> str:
    """A page of Markdown, by paragraphs, in another language."""
    translate = translator(read_catalogue(name, language))
    text = PAGES[name].read_text("utf-8")
    return "\n\n".join(translate(None, block) for block in blocks(text)) + "\n"


def readme(language: str = LANGUAGE) -> str:
    """README.ko.md: links and badges lead to the lessons in the same language."""
    text = translated_page("README", language)
    text = text.replace(SWITCH["en"], SWITCH[language])
    return re.sub(
        r"((?:\]\(|/blob/main/)notebooks/)(?:deeper/)?(\w+\.ipynb)",
        rf"\g<1>{language}/\2",
        text,
    )


def edition(language: str = LANGUAGE) -> dict[Path, bytes]:
    """Every file that is written from the catalogues."""
    files = {}
    for name, file in lessons().items():
        notebook = translated_notebook(read_notebook(file), name, language)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = in_one_folder(cell.source, file.parent, language)
        text = notebook_text(notebook)
        files[NOTEBOOKS / language / file.name] = text.encode()
    files |= spoken_files(language)
    files[ROOT / f"README.{language}.md"] = readme(language).encode()
    return files


# --- check ---------------------------------------------------------------------------


def differences(original: str, translation: str) -> Iterator[str]:
    """What a translation must leave as it is, and does not."""
    kept = {
        "links": LINK.findall,
        "code": CODE.findall,
        "placeholders": lambda text: PLACEHOLDER.findall(CODE.sub("", text)),
        "numbers": lambda text: NUMBER.findall(LINK.sub("", CODE.sub("", text))),
        "headings": lambda text: re.findall(r"(?m)^#+(?= )", CODE.sub("", text)),
        "rows": lambda text: re.findall(r"(?m)^\|", text),
    }
    for what, find in kept.items():
        there, here = Counter(find(original)), Counter(find(translation))
        if missing := there - here:
            yield f"{what} missing: {', '.join(missing.elements())}"
        # "five" may become 5: digits more are none too many
        if what != "numbers" and (added := here - there):
            yield f"{what} added: {', '.join(added.elements())}"


def problems(language: str = LANGUAGE) -> Iterator[str]:
    """Everything in which the edition is not in step, as "catalogue, cell: problem"."""
    for name, messages in sources().items():
        catalogue = read_catalogue(name, language)
        for context, text in messages:
            where = f"{name}, {context or repr(text[:50])}"
            message = catalogue.get(text, context)
            if message is None:
                yield f"{where}: not in the catalogue (make translate)"
            elif not message.string:
                yield f"{where}: not translated"
            elif message.fuzzy:
                yield f"{where}: fuzzy, the original has changed"
            else:
                for difference in differences(text, message.string):
                    yield f"{where}: {difference}"
        if extra := len([m for m in catalogue if m.id]) - len(set(messages)):
            yield f"{name}: {extra} messages are no longer used (make translate)"
    written = edition(language)
    for file, content in written.items():
        if not file.exists() or file.read_bytes() != content:
            yield f"{file.relative_to(ROOT)}: not as the catalogue has it"
    made = {*(NOTEBOOKS / language).glob("*.ipynb"), *LOCALE.glob(f"{language}/*/*.mo")}
    for file in sorted(made - written.keys()):
        yield f"{file.relative_to(ROOT)}: nothing has this name"


def write(language: str = LANGUAGE) -> None:
    """Bring the catalogues up to date, and write everything that comes of them."""
    for name, messages in sources().items():
        catalogue = read_catalogue(name, language)
        merge(catalogue, messages)
        file = catalogue_file(name, language)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(catalogue_text(catalogue))
        done = [m for m in catalogue if m.id and m.string]
        fuzzy = sum(m.fuzzy for m in done)
        total = len(set(messages))
        print(f"{name}: {total} messages, {len(done)} translated, {fuzzy} fuzzy")
    for file, content in spoken_files(language).items():
        file.write_bytes(content)
    exercises.forget_catalogues()  # what they say stands in the notebooks
    for file, content in edition(language).items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 if `check` found a problem."""
    parser = argparse.ArgumentParser("python -m tools.translate", None, __doc__)
    parser.add_argument(
        "command", nargs="?", choices=["write", "check"], default="write"
    )
    if parser.parse_args(arguments).command == "write":
        write()
        return 0
    found = list(problems())
    print("\n".join(found) or "The Korean edition is in step.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
