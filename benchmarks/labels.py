"""Labels against accuracy: the slow half of deeper lesson 05.

    python -m benchmarks.labels      # goes on where it stopped; an hour on one core

It executes the lesson's own cells (their ids: CELLS), so that lesson and table can't
differ, and calls the functions that they define for each method, number of labels and
seed. Each run is added to data/emoji_accuracy.json, which the lesson reads.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tqdm import tqdm

from benchmarks.common import ROOT, machine
from helpers.models import SmallCNN
from helpers.training import seed_everything
from tools import read_notebook

LESSON = ROOT / "notebooks" / "deeper" / "05_when_does_it_pay.ipynb"
RESULTS = ROOT / "data" / "emoji_accuracy.json"
CELLS = ("imports", "body", "pictures", "draw", "fit", "test-acc", "methods")
COUNTS, SEEDS = (24, 96, 6), range(5)

Method = Callable[[Any], float]  # the labelled pictures -> accuracy on the test ones


def lesson_names() -> dict[str, Any]:
    """What the lesson's cells define."""
    names: dict[str, Any] = {"COURSE": str(ROOT)}
    for cell in read_notebook(LESSON).cells:
        if cell.id in CELLS:
            exec(cell.source, names)
    return names


def methods(names: dict[str, Any]) -> dict[str, tuple[Method, tuple[int, ...]]]:
    """Name -> the method, and the numbers of labels for which it runs."""
    fine_tuned = names["fine_tuned"]

    def from_scratch(labelled: Any, lr: float, num_steps: int) -> float:
        return names["from_scratch"](SmallCNN(2), labelled, lr, num_steps)

    ways: dict[str, tuple[Method, tuple[int, ...]]] = {}
    for lr in (1e-3, 3e-3, 1e-2):
        way = partial(from_scratch, lr=lr, num_steps=400)
        ways[f"small CNN from scratch, 400 steps, lr {lr:g}"] = way, COUNTS
    # Five times the budget, which costs the most: for the most labels alone
    way = partial(from_scratch, lr=3e-3, num_steps=2000)
    ways["small CNN from scratch, 2,000 steps, lr 0.003"] = way, (96,)
    for lr in (1e-4, 3e-4, 1e-3):
        way = partial(fine_tuned, lr=lr)
        ways[f"fine-tuned, 140 steps, lr {lr:g}"] = way, COUNTS
    return ways


def main() -> None:
    ways, draw = methods(names := lesson_names()), names["draw"]
    content = {"about": machine(), "runs": []}
    if RESULTS.exists():
        content = json.loads(RESULTS.read_text("utf-8"))
    done = {(run["method"], run["labels"], run["seed"]) for run in content["runs"]}
    todo = [
        (method, count, seed)
        for count in COUNTS
        for method, (_, counts) in ways.items()
        for seed in SEEDS
        if count in counts and (method, count, seed) not in done
    ]
    for method, count, seed in tqdm(todo):
        seed_everything(seed)
        start = time.process_time()
        acc = ways[method][0](draw(count, seed))
        run = {"method": method, "labels": count, "seed": seed}
        run |= {"accuracy": round(acc, 4)}
        run |= {"cpu_s": round(time.process_time() - start, 1)}
        content["runs"].append(run)
        new = RESULTS.with_suffix(".new")
        new.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        new.replace(RESULTS)


if __name__ == "__main__":
    main()
