"""Measure, and write benchmarks/results.md.

    python -m benchmarks [NAME ...] [--quick]

NAMES are summary, checkpoint, ddp, course; all if left out. Each run is added
to benchmarks/runs.json; results.md shows the newest run of each benchmark and, of the
last two, whether their ratios agree. `--quick` tries the code out on next to nothing
and writes nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from benchmarks.common import HERE, ROOT, machine
from helpers.figures import use_style

NAMES = ("summary", "checkpoint", "ddp", "course")
RUNS, RESULTS = HERE / "runs.json", HERE / "results.md"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="try out, write nothing")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(unknown)}: there are {', '.join(NAMES)}")
    names = options.names or NAMES
    if len(names) > 1:  # each in a fresh process: what one leaves slows the next
        quick = ["--quick"] * options.quick
        return max([run_alone(name, *quick) for name in names])
    for name in names:
        module = import_module(f"benchmarks.{name}")
        about, start = machine(), time.perf_counter()
        outcome = module.run(options.quick)
        spent_s = time.perf_counter() - start
        print(f"\n{module.TITLE} ({spent_s:.0f} s)")
        for shown in (outcome.table, outcome.more):
            if len(shown):
                print(shown.to_string(index=False))
        for ratio, value in outcome.ratios.items():
            print(f"  {ratio}: {value:.3g}")
        if not options.quick:
            entry = about | {"benchmark": name, "seconds": round(spent_s)}
            entry["table"] = outcome.table.to_dict("records")
            entry["more"] = outcome.more.to_dict("records")
            entry["ratios"] = outcome.ratios
            entry["samples"] = outcome.samples
            write(entry, module)
    return 0


def run_alone(*arguments: str) -> int:
    """One benchmark in a process of its own; its exit status."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT).returncode


def write(entry: dict[str, Any], module: ModuleType) -> None:
    """Add the run; write figure and results.md anew. Nothing earlier is lost."""
    runs = [*read_runs(RUNS), entry]
    new = RUNS.with_suffix(".new")
    new.write_text(json.dumps(runs, indent=1) + "\n", "utf-8")
    new.replace(RUNS)
    use_style()
    figure, axis = plt.subplots(figsize=(9, 3.2))
    table = pd.DataFrame(entry["table"])
    axis.set_title(module.plot(table, axis), loc="left")
    axis.grid(axis="y", visible=False)
    figure.savefig(HERE / f"{module.NAME}.png")
    plt.close(figure)
    RESULTS.write_text(page(runs), "utf-8")


def read_runs(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text("utf-8")) if file.exists() else []


def page(runs: list[dict[str, Any]]) -> str:
    """results.md of all runs."""
    parts = [
        "# Measured\n\nWritten by `make bench`, which measures all of it again; "
        "`make bench-NAME` one part. Within a run all ways take turns, and a ratio is "
        "the median over the rounds. Compare ratios, not seconds: those are the "
        "machine's."
    ]
    for name in NAMES:
        own = [run for run in runs if run["benchmark"] == name]
        if own:
            parts.append(section(import_module(f"benchmarks.{name}"), own[-2:]))
    return "\n\n".join(parts) + "\n"


def section(module: ModuleType, runs: list[dict[str, Any]]) -> str:
    """A benchmark's newest table, and its ratios in the last two runs."""
    newest = runs[-1]
    lines = [
        f"## {module.TITLE}",
        f"![{module.TITLE}]({module.NAME}.png)",
        f"{newest['date']}, {newest['machine']}, {newest['versions']}, environment of "
        f"{newest['environment']}, load {newest['load']}; {newest['seconds']} s.",
        markdown(pd.DataFrame(newest["table"])),
        *([markdown(pd.DataFrame(newest["more"]))] if newest["more"] else []),
        f"The ratios in the last {len(runs)} runs:" if len(runs) > 1 else "The ratios:",
        markdown(compared(runs)),
    ]
    return "\n\n".join(lines)


def compared(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a ratio, one column a run; of two, how far they are apart."""
    rows = []
    for name in runs[-1]["ratios"]:
        values = [run["ratios"].get(name) for run in runs]
        row = {"ratio": name}
        row |= {
            run["date"]: "" if value is None else f"{value:.3g}"
            for run, value in zip(runs, values, strict=True)
        }
        if len(values) == 2 and None not in values:
            first, second = values
            same = first == second
            row["change"] = (
                "0 %" if same else f"{second / first - 1:+.0%}" if first else ""
            )
        rows.append(row)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    head = [list(table.columns), ["---"] * len(table.columns)]
    rows = [*head, *table.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nStopped. What was finished before is written.")
