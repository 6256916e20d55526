"""Exercises that answer back: `check`, `hint` and `solution`; quizzes by jupyterquiz.

A lesson's exercises are one module, `exercises/lesson_01.py`, which the notebook
imports as `ex`. A cell with an exercise ends in `ex.NAME.check(answer)`;
`ex.NAME.hint()` and `ex.NAME.solution()` are there when wanted. The three verbs are
those of Kaggle's learntools (github.com/Kaggle/learntools).

What they say follows the notebook's language, which its setup cell puts into
COURSE_LANGUAGE; the catalogues in locale/ hold it (tools/translate.py).
"""

import copy
import dis
import functools
import gettext
import importlib
import os
import pkgutil
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
from IPython.display import Code, display
from jupyterquiz import display_quiz
from torch import nn

from helpers.training import keep_random_state

VARIABLE = "COURSE_LANGUAGE"
LOCALE = Path(__file__).resolve().parent.parent / "locale"


@functools.cache
def _catalogue(language: str) -> gettext.NullTranslations:
    """All catalogues of a language as one; what none holds stays English."""
    found = gettext.NullTranslations()
    for file in sorted(LOCALE.glob(f"{language}/LC_MESSAGES/*.mo")):
        with file.open("rb") as stored:
            catalogue = gettext.GNUTranslations(stored)
        catalogue.add_fallback(found)
        found = catalogue
    return found


forget_catalogues = _catalogue.cache_clear


def _(message: str) -> str:
    """The message in the notebook's language."""
    return _catalogue(os.environ.get(VARIABLE, "en")).gettext(message)


class N_(str):
    """A message for the catalogues that reaches `Wrong` by a name, or as a value."""


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Within the block, exercises speak the language ("ko"; "en" is the original)."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = language
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


class Wrong(AssertionError):
    """The answer is wrong; the message names the misconception and where to read.

    Args:
        message: as it stands in the catalogues, with `{}` where values go.
        values: are put in, as `str.format` does; an `N_` among them is translated.
    """

    def __init__(self, message: str, *values: Any) -> None:
        self.message = message
        spoken = (_(v) if isinstance(v, N_) else v for v in values)
        super().__init__(_(message).format(*spoken) if values else _(message))


class Solution:
    """An answer that passes; called, it shows its text."""

    def __init__(self, value: Any, text: str) -> None:
        self.value, self.text = value, text

    def __call__(self) -> None:
        display(Code(self.text.strip(), language="python"))


class Exercise:
    """One task of a lesson.

    Args:
        check: takes the answer, returns nothing, and raises `Wrong` if it is wrong.
            Whatever else it raises comes from the learner's own code and is shown as
            it is. It may draw random numbers: their states are put back afterwards.
        start: what stands in the notebook before the learner begins: a value, a
            program's text, or a function or class, of which the code is compared.
        hints: from a nudge to nearly all of it.
        solution: an answer that passes.
        text: the solution as `solution()` shows it.
        wrong_answers: pairs of an answer that learners give, and a phrase that the
            message about it must hold.
    """

    lesson = name = ""  # set by `define`

    def __init__(
        self,
        check: Callable[[Any], None],
        *,
        start: Any,
        hints: list[str],
        solution: Any,
        text: str,
        wrong_answers: list[tuple[Any, str]],
    ) -> None:
        self._check, self.start, self.hints = check, start, hints
        self.solution, self.wrong_answers = Solution(solution, text), wrong_answers
        self._hints_shown = 0

    def check(self, answer: Any) -> None:
        """Say whether the answer is right; the answer itself is not changed.

        Raises:
            Wrong: it is not; the message says what is wrong about it.
        """
        if isinstance(answer, Solution):
            answer = answer.value
        if not_begun(answer, self.start):
            print(_("Not begun yet. Stuck? Call ex.{}.hint()").format(self.name))
            return
        if isinstance(answer, nn.Module | torch.Tensor | dict | list):
            answer = copy.deepcopy(answer)
        with keep_random_state():
            self._check(answer)
        print(_("Correct!"))

    def hint(self) -> None:
        """Show the next hint; after the last one, the first again."""
        number = self._hints_shown % len(self.hints)
        self._hints_shown += 1
        title = _("Hint {} of {}: ").format(number + 1, len(self.hints))
        print(title + _(self.hints[number]))


def not_begun(answer: Any, start: Any) -> bool:
    """Whether the answer is nothing, an empty function, or what the notebook holds."""

    def empty() -> None: ...

    if answer is None or answer is ... or answer is start:
        return True
    if isinstance(answer, str) and isinstance(start, str):
        return answer.split() == start.split()
    if isinstance(answer, FunctionType | type):
        return _code(answer) in (_code(start), _code(empty))
    return False


def _code(thing: Any) -> Any:
    """What a function or a class does, comparable whatever file it stands in."""
    if isinstance(thing, FunctionType):
        return _code(thing.__code__)
    if isinstance(thing, CodeType):
        # Not the raw bytes: Python compiles `torch.zeros(4)` to other instructions in
        # the file that imports torch than in a notebook's cell below the import.
        return [
            (
                step.opname.replace("LOAD_METHOD", "LOAD_ATTR"),
                "" if step.opcode in dis.hasjrel else _code(step.argval),
            )
            for step in dis.get_instructions(thing)
            if step.opname != "PUSH_NULL"
        ]
    if isinstance(thing, type):
        return {k: _code(v) for k, v in vars(thing).items() if callable(v)}
    return thing


def choice(question: str, *answers: tuple[str, bool, str]) -> dict[str, Any]:
    """A question as jupyterquiz takes it; `answers`: (answer, whether right, why)."""
    return {
        "question": question,
        "type": "multiple_choice",
        "answers": [
            {"answer": answer, "correct": correct, "feedback": feedback}
            for answer, correct, feedback in answers
        ],
    }


def define(module: Mapping[str, Any]) -> Callable[[str], None]:
    """Name a module's exercises, and return its `quiz`: `quiz = define(globals())`.

    Args:
        module: holds `Exercise`s, and `QUIZZES`: name -> questions as jupyterquiz takes
            them (github.com/jmshea/jupyterquiz).
    """
    for name, exercise in module.items():
        if isinstance(exercise, Exercise):
            exercise.name = name
            exercise.lesson = module["__name__"].rpartition(".")[2]

    def quiz(name: str) -> None:
        """Show a multiple-choice question; each wrong choice is answered."""
        with keep_random_state():
            random.seed(name)  # jupyterquiz draws an id: the same output every time
            questions = [_translated(each) for each in module["QUIZZES"][name]]
            display_quiz(questions, shuffle_answers=False)

    return quiz


def _translated(part: Any) -> Any:
    """A quiz's question in the notebook's language, its answers included."""
    if isinstance(part, list):
        return [_translated(each) for each in part]
    if not isinstance(part, dict):
        return part
    texts = {
        key: _(part[key]) for key in part.keys() & {"question", "answer", "feedback"}
    }
    return {key: _translated(value) for key, value in part.items()} | texts


def all_exercises() -> Iterator[Exercise]:
    """Every exercise of every lesson, quizzes apart."""
    for _, name, _ in sorted(pkgutil.iter_modules(__path__), key=lambda m: m[1]):
        module = importlib.import_module(f"exercises.{name}")
        yield from (v for v in vars(module).values() if isinstance(v, Exercise))
