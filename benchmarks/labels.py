"""Labels against accuracy: the slow half of the deeper lesson 05, for labels.json.

    python -m benchmarks.labels      # goes on where it stopped; an hour on one core

It runs the lesson's own cells (their ids: CELLS), so that lesson and table can't
differ, and then its functions for every method, number of labels and seed; the slowest
method for the largest number alone.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import nbformat
from tqdm import tqdm

from benchmarks.common import HERE, ROOT, machine

LESSON = ROOT / "notebooks" / "deeper" / "05_when_does_it_pay.ipynb"
RESULTS = HERE / "labels.json"
CELLS = ("imports", "body", "pictures", "draw", "fit", "methods")
COUNTS, SEEDS = (6, 24, 96), range(5)


def lesson_names() -> dict[str, Any]:
    """What the lesson's cells define."""
    names: dict[str, Any] = {"COURSE": str(ROOT)}
    for cell in nbformat.read(LESSON, as_version=4).cells:
        if cell.id in CELLS:
            exec(cell.source, names)
    return names


def methods(names: dict[str, Any]) -> dict[str, Callable[[Any], float]]:
    """Method -> its test accuracy for the labelled pictures given."""
    scratch, tuned = names["from_scratch"], names["fine_tuned"]
    small, network = names["SmallCNN"], names["EfficientNet"].from_name

    def same_network(labelled: Any) -> float:
        return scratch(
            network("efficientnet-lite0", num_classes=2), labelled, 1e-3, 400
        )

    ways: dict[str, Callable[[Any], float]] = {}
    for lr in (1e-3, 3e-3, 1e-2):
        name = f"small CNN from scratch, 400 steps, lr {lr:g}"
        ways[name] = lambda labelled, lr=lr: scratch(small(2), labelled, lr, 400)
    for lr in (1e-4, 3e-4, 1e-3):
        name = f"fine-tuned, 140 steps, lr {lr:g}"
        ways[name] = lambda labelled, lr=lr: tuned(labelled, lr)
    name = "small CNN from scratch, 2,000 steps, lr 0.003"
    ways[name] = lambda labelled: scratch(small(2), labelled, 3e-3, 2000)
    ways["same network from scratch, 400 steps, lr 0.001"] = same_network
    return ways


def main() -> None:
    names = lesson_names()
    content = {"about": machine(), "runs": []}
    if RESULTS.exists():
        content = json.loads(RESULTS.read_text("utf-8"))
    done = {(run["method"], run["labels"], run["seed"]) for run in content["runs"]}
    todo = [
        (method, count, seed)
        for method in methods(names)
        for count in COUNTS
        for seed in SEEDS
        if (method, count, seed) not in done
        and not (method.startswith("same network") and count != max(COUNTS))
    ]
    for method, count, seed in tqdm(todo):
        start = time.process_time()
        names["seed_everything"](seed)
        acc = methods(names)[method](names["draw"](count, seed))
        content["runs"].append(
            {
                "method": method,
                "labels": count,
                "seed": seed,
                "accuracy": round(acc, 4),
                "cpu_s": round(time.process_time() - start, 1),
            }
        )
        new = RESULTS.with_suffix(".new")
        new.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        new.replace(RESULTS)


if __name__ == "__main__":
    main()
