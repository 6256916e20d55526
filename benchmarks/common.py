"""What all benchmarks share: ways tried in turn, fresh processes, tables."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from torch.utils.benchmark import Timer
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
Samples = dict[str, list[float]]  # way -> one value a round


@dataclass
class Outcome:
    """What a benchmark found.

    table: one row a way or a subject, ready to be printed; the plot is drawn from it.
    ratios: the figures that may be quoted, each from one run; name -> value.
    samples: the raw values behind the table.
    more: a second table, with what the first has no column for.
    """

    table: pd.DataFrame
    ratios: dict[str, float]
    samples: dict[str, Any] = field(default_factory=dict)
    more: pd.DataFrame = field(default_factory=pd.DataFrame)


def machine() -> dict[str, str]:
    """What the figures depend on."""
    files = [path.lstat() for path in Path(sys.prefix).rglob("*")]
    return {
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {psutil.cpu_count()} logical cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "load": f"{psutil.getloadavg()[0]:.1f} at the start",
        "environment": f"{sum(file.st_size for file in files) / 1e9:.1f} GB",
    }


def seconds(way: Callable[[], Any]) -> float:
    """Time of one call in seconds, GPU included, by torch's own timer."""
    timer = Timer("way()", globals={"way": way}, num_threads=torch.get_num_threads())
    return timer.timeit(1).median


def in_turn(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    what: str,
    measure: Callable[[Callable[[], Any]], float] = seconds,
) -> Samples:
    """Measure every way once a round, in an order that moves on by one each round.

    So a slow moment of the machine hits all ways alike, and none is always the first.
    """
    names = list(ways)
    samples: Samples = {name: [] for name in names}
    with tqdm(total=rounds * len(names), desc=what) as bar:
        for number in range(rounds):
            start = number % len(names)
            for name in names[start:] + names[:start]:
                samples[name].append(measure(ways[name]))
                bar.update()
    return samples


def ratio(samples: Samples, way: str, reference: str) -> float:
    """Median over the rounds of way / reference, both of the same round."""
    pairs = zip(samples[way], samples[reference], strict=True)
    return float(pd.Series([a / b for a, b in pairs]).median())


def timing_table(samples: Samples, reference: str) -> pd.DataFrame:
    """Median, spread (half the interquartile range, in % of it) and ratio."""
    rows = []
    for way, values in samples.items():
        series = pd.Series(values)
        half_iqr = (series.quantile(0.75) - series.quantile(0.25)) / 2
        rows.append(
            {
                "way": way,
                "median s": round(series.median(), 4),
                "spread": f"±{half_iqr / series.median():.0%}",
                f"times {reference}": round(ratio(samples, way, reference), 2),
            }
        )
    return pd.DataFrame(rows)


def fresh(module: str, *arguments: object, timeout_s: float = 600) -> Any:
    """Run `python -m benchmarks.MODULE ARGUMENTS`; its last line, read as JSON.

    Peak memory needs a process of its own.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib() -> float:
    """The largest resident memory of this process so far.

    Not ru_maxrss, which on Linux begins with the parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def threads(number: int = 2) -> None:
    """Two threads, whatever the machine has, so that runs can be compared."""
    torch.set_num_threads(number)
    os.environ["OMP_NUM_THREADS"] = str(number)
