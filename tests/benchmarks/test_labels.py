"""The stored runs of deeper lesson 05 are those that benchmarks.labels would make."""

import json
from collections import Counter

from benchmarks import labels
from tools import read_notebook


def test_the_lesson_holds_the_cells_that_the_benchmark_executes():
    ids = [cell.id for cell in read_notebook(labels.LESSON).cells]
    assert [name for name in ids if name in labels.CELLS] == list(labels.CELLS)


def test_every_stored_run_is_one_of_the_benchmarks_and_there_once():
    runs = json.loads(labels.RESULTS.read_text("utf-8"))["runs"]
    names_alone = {"fine_tuned": print, "from_scratch": print}  # nothing is trained
    ways = labels.methods(names_alone)
    found = Counter((run["method"], run["labels"], run["seed"]) for run in runs)
    wanted = {
        (method, count, seed)
        for method, (_, counts) in ways.items()
        for count in counts
        for seed in labels.SEEDS
    }
    assert set(found) <= wanted
    assert set(found.values()) == {1}
