"""The time of all tests, and of each lesson among them."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
from tqdm import tqdm

from benchmarks.common import ROOT, Outcome
from tools import NOTEBOOKS

NAME, TITLE = "course", "The course itself"
LESSON = re.compile(r"notebooks\.(\w+)\.ipynb")


def run(quick: bool = False) -> Outcome:
    """What `make test` runs, once.

    Raises:
        RuntimeError: a test failed. A time for that means nothing.
    """
    lessons = sorted(NOTEBOOKS.glob("*.ipynb"))
    chosen = [str(lessons[0])] if quick else []
    # As the Makefile has it
    settings = {"GOMP_SPINCOUNT": "10000", "OMP_NUM_THREADS": "1"}
    settings |= {"COURSE_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-v", "-n", "auto", *chosen]
        command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
        start, printed = time.perf_counter(), []
        with (
            subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | settings,
            ) as tests,
            tqdm(total=100, desc="all tests", unit="%") as bar,
        ):
            for line in tests.stdout:
                printed.append(line)
                if found := re.match(r"\[gw\d+\] \[ *(\d+)%\]", line):
                    bar.update(int(found[1]) - bar.n)
        tests_s = time.perf_counter() - start
        if tests.returncode:
            raise RuntimeError(f"make test fails:\n{''.join(printed)[-3000:]}")
        seconds, passed = read(report)
    rows = [{"what": lesson, "s": value} for lesson, value in sorted(seconds.items())]
    rows.append({"what": f"all {passed} tests, lessons included", "s": tests_s})
    table = pd.DataFrame(rows).round(1)
    slowest = max(seconds.values())
    return Outcome(table, {"slowest lesson / all tests": slowest / tests_s})


def read(report: Path) -> tuple[dict[str, float], int]:
    """Seconds by lesson, and how many tests passed, from pytest's JUnit report."""
    seconds: dict[str, float] = {}
    passed = 0
    for case in ElementTree.parse(report).iter("testcase"):
        passed += not len(case)  # a failed or skipped one has an element that says so
        if found := LESSON.fullmatch(case.get("classname", "")):
            seconds.setdefault(found[1], 0.0)
            seconds[found[1]] += float(case.get("time", "0"))
    return seconds, passed


def plot(table: pd.DataFrame, axis) -> str:
    bars = axis.barh(table["what"], table["s"], color="#0072B2")
    axis.bar_label(bars, fmt="%.0f s", padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set(xlabel="seconds")
    lessons = table["s"].iloc[:-1]
    return (
        f"Lessons take {lessons.min():.0f} to {lessons.max():.0f} s, "
        "one thread each, among all tests"
    )
