"""The Korean edition is in step, and `make translate` notices what is not."""

import re

import pytest
from babel.messages import Catalog

import exercises
from tools import NOTEBOOKS, ROOT, all_notebooks, read_notebook, translate

HANGUL = re.compile("[\uac00-\ud7a3]")
ENGLISH = translate.lessons()


def test_nothing_is_missing_fuzzy_or_out_of_step():
    """If this fails: `make translate`, then translate what it says is not."""
    assert list(translate.problems()) == []


@pytest.mark.parametrize("name", ENGLISH)
def test_a_korean_lesson_has_the_english_one_s_code_and_outputs(name):
    english = read_notebook(ENGLISH[name])
    korean = read_notebook(NOTEBOOKS / "ko" / f"{name}.ipynb")
    assert [cell.id for cell in korean.cells] == [cell.id for cell in english.cells]
    for theirs, ours in zip(english.cells, korean.cells, strict=True):
        assert ours.cell_type == theirs.cell_type
        if ours.cell_type == "markdown":
            continue
        if ours.id == "setup":
            first, last = ours.source.rsplit("\n", 1)
            assert first == theirs.source
            assert last == 'os.environ["COURSE_LANGUAGE"] = "ko"'
            continue
        assert ours.source == theirs.source, ours.id
        if re.search(r"\bex\.\w+\.check\(|\bex\.quiz\(", ours.source):
            assert ours.outputs != theirs.outputs, ours.id  # Korean, perhaps as \\u...
        else:
            assert ours.outputs == theirs.outputs, ours.id
    texts = [cell.source for cell in korean.cells if cell.cell_type == "markdown"]
    assert all(map(HANGUL.search, texts))


def catalogue(*entries: tuple[str, str, str]) -> Catalog:
    made = Catalog(locale="ko")
    for context, text, translation in entries:
        made.add(text, translation, context=context)
    return made


def test_a_changed_cell_becomes_fuzzy_and_keeps_its_translation():
    old = "A model's state_dict maps each name to a tensor."
    stored = catalogue(("keys", old, "이름"), ("end", "Done.", "끝"))
    new = "Something else altogether, with not a word of it left."
    translate.merge(
        stored, [("keys", new), ("end", "Done."), ("more", "Ranks exchange gradients.")]
    )
    by_cell = {message.context: message for message in stored if message.id}
    assert by_cell["keys"].id == new
    assert by_cell["keys"].string == "이름"
    assert by_cell["keys"].fuzzy
    assert list(by_cell["keys"].previous_id) == [old]
    assert (by_cell["end"].string, by_cell["end"].fuzzy) == ("끝", False)
    assert not by_cell["more"].string
    assert translate.translator(stored)("keys", new) == new, "a fuzzy one isn't shown"
    assert list(by_cell) == ["keys", "end", "more"], "in the lesson's order"


def test_a_changed_english_cell_fails_the_check(monkeypatch):
    sources = translate.sources()
    name = next(iter(ENGLISH))
    (context, text), *others = sources[name]
    changed = sources | {name: [(context, f"{text} More."), *others]}
    monkeypatch.setattr(translate, "sources", lambda: changed)
    monkeypatch.setattr(translate, "edition", lambda language: {})
    found = list(translate.problems())
    assert any(f"{name}, {context}: not in the catalogue" in line for line in found)


@pytest.mark.parametrize(
    ("translation", "problem"),
    [
        ("## 제목 [3](b.md) `x`", "links missing: a.md"),
        ("## 제목 [3](a.md)", "code missing: `x`"),
        ("## 제목 [4](a.md) `x`", "numbers missing: 3"),
        ("제목 [3](a.md) `x`", "headings missing: ##"),
        ("## 제목 [3](a.md) `x` `y`", "code added: `y`"),
        ("## 제목 [3](a.md) `x` {}", "placeholders added: {}"),
    ],
)
def test_what_a_translation_must_keep(translation, problem):
    original = "## Title [3](a.md) `x`"
    assert list(translate.differences(original, "## 제목 [3](a.md) `x`")) == []
    assert problem in list(translate.differences(original, translation))


def test_links_lead_from_the_korean_folder():
    text = "[a](03_x.ipynb) [b](../02_y.ipynb#z) [c](../../docs/colab.md) [d](#e)"
    moved = translate.in_one_folder(text, NOTEBOOKS / "deeper")
    assert moved == "[a](03_x.ipynb) [b](02_y.ipynb#z) [c](../../docs/colab.md) [d](#e)"


def test_all_links_of_the_edition_lead_somewhere():
    files = [ROOT / "README.ko.md", *(NOTEBOOKS / "ko").glob("*.ipynb")]
    assert len(files) == len(ENGLISH) + 1
    for file in files:
        text = file.read_text("utf-8")
        if file.suffix == ".ipynb":
            cells = read_notebook(file).cells
            text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
        for link in translate.LINK.findall(text):
            if not link.startswith(("http", "#")):
                assert (file.parent / link.partition("#")[0]).exists(), (file, link)


def test_exercises_speak_the_notebook_s_language():
    (exercise, *_) = exercises.all_exercises()
    with exercises.speaking("ko"):
        korean = str(exercises.Wrong(exercise.hints[0]))
    assert HANGUL.search(korean)
    assert str(exercises.Wrong(exercise.hints[0])) == exercise.hints[0]
    assert str(exercises.Wrong("{} of {:.1f}", "a", 2)) == "a of 2.0"


def test_every_message_of_an_exercise_is_in_korean():
    """But those that are code, or a number."""
    texts = {
        text
        for number in range(1, 9)
        for _, text in translate.exercise_messages(f"lesson_0{number}")
    }
    with exercises.speaking("ko"):
        korean = {text for text in texts if HANGUL.search(str(exercises.Wrong(text)))}
    assert len(korean) > 0.9 * len(texts)
    assert {hint for e in exercises.all_exercises() for hint in e.hints} <= texts


def test_korean_notebooks_are_among_all_of_them():
    assert {file.parent.name for file in all_notebooks()} == {
        "notebooks",
        "deeper",
        "ko",
    }
