"""Lesson 02: state_dict."""

import copy

import torch

from exercises import Exercise, Wrong, define
from helpers.models import SmallCNN

QUIZZES = {
    "best_weights": [
        {
            "question": "After the loop, which accuracy do we get from `best`?",
            "type": "multiple_choice",
            "answers": [
                {
                    "answer": "that of the best epoch",
                    "correct": False,
                    "feedback": "That is what the name promises. But state_dict() "
                    "copies no tensor: training goes on changing the ones in best.",
                },
                {
                    "answer": "that of the last epoch",
                    "correct": True,
                    "feedback": "Yes: the tensors in best are the model's own.",
                },
            ],
        }
    ]
}


def _check_snapshot(snapshot):
    model = SmallCNN()
    kept = snapshot(model)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.head.weight.add_(1)
    if not torch.equal(kept["head.weight"], before["head.weight"]):
        raise Wrong(
            "Your snapshot changed when the model was trained on: it shares its "
            "tensors with the model. Copying the dictionary is not enough. Section 4."
        )


def _start(model):
    return model.state_dict()


def _solution(model):
    return copy.deepcopy(model.state_dict())


snapshot = Exercise(
    _check_snapshot,
    start=_start,
    hints=["Which copy also copies the tensors?", "import copy; copy.deepcopy(...)"],
    solution=_solution,
    text="def snapshot(model):\n    return copy.deepcopy(model.state_dict())",
    wrong_answers=[
        (lambda model: dict(model.state_dict()), "shares its tensors"),
        (lambda model: model.state_dict().copy(), "shares its tensors"),
    ],
)

quiz = define(globals())
