"""The time of each lesson, and of all tests."""

import os
import re
import subprocess
import sys
import time

import pandas as pd
from tqdm import tqdm

from benchmarks.common import ROOT, Outcome
from tools import NOTEBOOKS

NAME, TITLE = "course", "The course itself"


def seconds_of(*command: str, **settings: str) -> tuple[float, str]:
    """Run one of the course's commands as the Makefile does, with these variables.

    Returns:
        How long it took, and what it printed.

    Raises:
        RuntimeError: it failed. A time for that means nothing.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"GOMP_SPINCOUNT": "10000", "COURSE_OFFLINE": "1"} | settings,
    )
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return time.perf_counter() - start, done.stdout


def run(quick: bool = False) -> Outcome:
    lessons = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    lessons = lessons[:1] if quick else lessons
    rows = []
    for lesson in tqdm(lessons, desc="lessons"):
        _, printed = seconds_of("tools.course", lesson)
        rows.append(
            {"what": lesson, "s": float(re.search(r"ok, ([\d.]+) s", printed)[1])}
        )
    if not quick:
        pytest = "pytest", "-n", "auto", "-p", "no:cacheprovider"
        tests_s, printed = seconds_of(*pytest, OMP_NUM_THREADS="1")
        passed = re.search(r"(\d+) passed", printed)[1]
        rows.append({"what": f"all {passed} tests, on all cores", "s": tests_s})
    table = pd.DataFrame(rows).round(1)
    slowest = table[table["what"].isin(lessons)]["s"].max()
    first = table["s"].iloc[0]
    return Outcome(table, {"slowest lesson / first lesson": slowest / first})


def plot(table: pd.DataFrame, axis) -> str:
    bars = axis.barh(table["what"], table["s"], color="#0072B2")
    axis.bar_label(bars, fmt="%.0f s", padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set(xlabel="seconds")
    lessons = table["s"].iloc[:-1]
    return f"Each lesson runs in {lessons.min():.0f} to {lessons.max():.0f} s, no GPU"
