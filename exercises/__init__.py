"""Exercises that answer back: `check`, `hint` and `solution`; quizzes by jupyterquiz.

A lesson's exercises are one module, `exercises/lesson_01.py`, which the notebook
imports as `ex`. A cell with an exercise ends in `ex.NAME.check(answer)`;
`ex.NAME.hint()` and `ex.NAME.solution()` are there when wanted. The three verbs are
those of Kaggle's learntools (github.com/Kaggle/learntools).
"""

import copy
import dis
import importlib
import pkgutil
import random
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import torch
from IPython.display import Code, display
from jupyterquiz import display_quiz
from torch import nn

from helpers.training import keep_random_state


class Wrong(AssertionError):
    """The answer is wrong; the message names the misconception and where to read."""


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
            print(f"Not begun yet. Stuck? Call ex.{self.name}.hint()")
            return
        if isinstance(answer, nn.Module | torch.Tensor | dict | list):
            answer = copy.deepcopy(answer)
        with keep_random_state():
            self._check(answer)
        print("Correct!")

    def hint(self) -> None:
        """Show the next hint; after the last one, the first again."""
        number = self._hints_shown % len(self.hints)
        self._hints_shown += 1
        print(f"Hint {number + 1} of {len(self.hints)}: {self.hints[number]}")


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
            display_quiz(module["QUIZZES"][name], shuffle_answers=False)

    return quiz


def all_exercises() -> Iterator[Exercise]:
    """Every exercise of every lesson, quizzes apart."""
    for _, name, _ in sorted(pkgutil.iter_modules(__path__), key=lambda m: m[1]):
        module = importlib.import_module(f"exercises.{name}")
        yield from (v for v in vars(module).values() if isinstance(v, Exercise))
