"""Lesson 04's printed solutions, pasted into the notebook."""

import ast
import json
from pathlib import Path

import pytest

from exercises import lesson_04 as ex

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "04_checkpoints.ipynb"
EXERCISES = [ex.newest, ex.resume, ex.load_best, ex.early_stopping]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
def test_a_pasted_solution_passes(exercise, capsys):
    cells = {cell["id"]: cell for cell in json.loads(NOTEBOOK.read_text())["cells"]}
    tree = ast.parse("".join(cells["imports"]["source"]))
    tree.body = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {}
    exec(compile(tree, "imports", "exec"), names)
    text = exercise.solution.text
    exec(text, names)
    (answer,) = (n.name for n in ast.parse(text).body if hasattr(n, "name"))
    exercise.check(names[answer])
    assert "Correct" in capsys.readouterr().out
