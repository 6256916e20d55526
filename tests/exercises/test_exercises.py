"""Every exercise: its solution passes, and each wrong answer is told what is wrong."""

import inspect
import random

import numpy as np
import pytest
import torch

from exercises import Exercise, Wrong, all_exercises, not_begun

EXERCISES = {f"{e.lesson}.{e.name}": e for e in all_exercises()}
WRONG = [
    pytest.param(e, answer, phrase, id=f"{name}-{number}")
    for name, e in EXERCISES.items()
    for number, (answer, phrase) in enumerate(e.wrong_answers)
]
each = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)


@each
def test_the_solution_passes(exercise: Exercise, capsys):
    exercise.check(exercise.solution)
    assert "Correct" in capsys.readouterr().out


@pytest.mark.parametrize(("exercise", "answer", "phrase"), WRONG)
def test_a_wrong_answer_is_recognised(exercise, answer, phrase):
    with pytest.raises(Wrong) as raised:
        exercise.check(answer)
    assert phrase in str(raised.value)


@each
def test_what_the_notebook_holds_is_not_begun(exercise, capsys):
    for answer in (exercise.start, None, ..., lambda *_: None):
        exercise.check(answer)
        assert "Not begun" in capsys.readouterr().out


class Begin:
    """As in an exercise: it uses a module that this file imports."""

    def draw(self, numbers):
        for _ in numbers:
            if random.random() > 0.5:
                return [random.choice(numbers) for _ in range(2)]
        return torch.zeros(4)


def test_the_same_code_in_a_cell_is_not_begun():
    """There the imports stand in another cell, and the bytes of the code differ."""
    source = inspect.getsource(Begin)
    cell, changed = {}, {}
    exec(source, cell)
    exec(source.replace("> 0.5", "< 0.5"), changed)
    assert cell["Begin"].draw.__code__.co_code != Begin.draw.__code__.co_code
    assert not_begun(cell["Begin"], Begin)
    assert not_begun(cell["Begin"].draw, Begin.draw)
    assert not not_begun(changed["Begin"], Begin)


@each
def test_the_learners_own_error_is_shown(exercise):
    class Mine(Exception):
        pass

    def answer(*args, **kwargs):
        raise Mine

    if callable(exercise.solution.value):
        with pytest.raises(Mine):
            exercise.check(answer)


@each
def test_checking_leaves_random_numbers_alone(exercise):
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    exercise.check(exercise.solution)
    after = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    assert states[:2] == after[:2]
    assert torch.equal(states[2], after[2])


@each
def test_it_has_hints_and_knows_three_wrong_answers(exercise):
    assert len(exercise.hints) >= 2
    assert len(exercise.wrong_answers) >= 3
