"""One and two processes over gloo: throughput, bytes moved, FSDP2's memory."""

import json
import os
import subprocess
import sys

import pandas as pd

from benchmarks.common import Outcome, ratio

NAME, TITLE = "ddp", "One process and two"
ONE, TWO, THREADS = "1 x 1 thread", "2 x 1 thread", "1 x 2 threads"


def measured(ranks: int, rounds: int, number: int) -> dict:
    """What benchmarks/ddp_worker.py prints on so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", "benchmarks.ddp_worker"]
    done = subprocess.run(
        [*command, str(rounds), str(number)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout)


def run(quick: bool = False) -> Outcome:
    rounds, number = (1, 1) if quick else (9, 5)
    found = {ranks: measured(ranks, rounds, number) for ranks in (2, 1)}
    samples = found[2]["samples"]
    rows = []
    for way, values in samples.items():
        series = pd.Series(values)
        half_iqr = (series.quantile(0.75) - series.quantile(0.25)) / 2
        rows.append(
            {
                "processes": way,
                "samples a second": round(series.median()),
                "spread": f"±{half_iqr / series.median():.0%}",
                f"times {ONE}": round(ratio(samples, way, ONE), 2),
            }
        )
    ratios = {
        "throughput, 2 processes / 1, one thread each": ratio(samples, TWO, ONE),
        "throughput, 1 process, 2 threads / 1": ratio(samples, THREADS, ONE),
        "bytes moved in a step, of the model's": found[2]["moved"] / found[2]["model"],
        "bytes held with FSDP2, a rank of 2 / of 1": found[2]["held"]
        / found[1]["held"],
    }
    one, two = found[1], found[2]
    more = [
        {"what": "the model whose gradients are averaged", "MB": two["model"]},
        {"what": "moved in a step of two processes", "MB": two["moved"]},
        {"what": "held with FSDP2 and Adam by the rank of one", "MB": one["held"]},
        {"what": "held with FSDP2 and Adam by a rank of two", "MB": two["held"]},
    ]
    megabytes = pd.DataFrame(more)
    megabytes["MB"] = (megabytes["MB"] / 1e6).round(1)
    return Outcome(pd.DataFrame(rows), ratios, found, megabytes)


def plot(table: pd.DataFrame, axis) -> str:
    times = table[f"times {ONE}"]
    bars = axis.barh(table["processes"], times, color="#0072B2")
    axis.bar_label(bars, label_type="center", color="white", fmt="%.2f")
    axis.axvline(2, color="black", ls="--", lw=1)
    axis.annotate("ideal: 2", (1.99, 0), ha="right", va="center")
    axis.invert_yaxis()
    axis.set(xlabel="throughput, times one process with one thread")
    return f"Two processes, by real all-reduce over gloo: {times.iloc[-1]} times one"
