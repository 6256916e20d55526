"""Run under torchrun by test_train_ddp.py: many short cases in one group of processes.

Rank 0 prints {case: what each rank met} as JSON.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Subset

from helpers import checkpoint, processes, train_ddp
from helpers.data import load_digits
from helpers.models import SmallCNN
from helpers.training import evaluate

WORK = Path(sys.argv[1])
USED = str(WORK / "used")
CASES = {
    "trains": ["--epochs=1", f"--folder={USED}"],
    "nothing left": ["--epochs=1", f"--folder={USED}", "--resume"],
    "in use": ["--epochs=2", f"--folder={USED}"],
    "other settings": ["--resume", "--lr=0.5", f"--folder={USED}"],
    "help": ["--help"],
    "no number": ["--epochs=many"],
    "zero": ["--epochs=0"],
    "unknown": ["--nodes=2"],
    "indivisible": ["--batch-size=9"],
    "indivisible parts": ["--batch-size=10", "--accumulate=3"],
    "too large": ["--batch-size=2000"],
    "no data": [f"--data={WORK / 'missing'}"],
    "no model": ["--model=resnet"],
    "no classifier": ["--model=fcn_resnet50"],
    "too small": ["--model=inception_v3"],
    "not a folder": [f"--folder={__file__}"],
    "bf16": ["--bf16", "--epochs=1", "--accumulate=2"],
}


def attempt(device, argv):
    """What this rank prints and how it leaves, as [stdout, stderr, exit code]."""
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            train_ddp.train(device, argv)
        except SystemExit as end:
            code = end.code
    return out.getvalue(), err.getvalue(), code


def on_one_rank(device, rank):
    """Cases in which one rank meets with trouble, and the other with none."""
    here = dist.get_rank() == rank
    full = checkpoint.CheckpointError("the disk is full")
    for case, where, replacement in (
        (
            "data here, not there",
            "load_data",
            {"side_effect": OSError("no such photo")},
        ),
        ("full", "checkpoint.save_checkpoint", {"side_effect": full}),
        ("not one folder", "resume", {"return_value": (3, 0)}),
    ):
        trouble = mock.patch(f"helpers.train_ddp.{where}", **replacement)
        with trouble if here else contextlib.nullcontext():
            folder = WORK / f"{case} {rank}"
            yield (
                f"{case} {rank}",
                attempt(device, ["--epochs=1", f"--folder={folder}"]),
            )


def evaluations():
    """Shares of a set evaluated together, against all of it by this process alone."""
    torch.manual_seed(0)
    model, loss_fn = SmallCNN(), torch.nn.CrossEntropyLoss()
    model.layer1[1].running_mean += dist.get_rank()  # rank 0's must count
    for size in (1, 2, 397):
        data = Subset(load_digits("val"), range(size))
        together = processes.evaluate_together(model, data, 50, loss_fn)
        yield together, evaluate(model, DataLoader(data, 64), loss_fn)


def main(device):
    results = {}
    for case, argv in CASES.items():
        folder = [] if any("--folder" in arg for arg in argv) else [WORK / case]
        results[case] = attempt(device, argv + [f"--folder={f}" for f in folder])
    for rank in (0, 1):
        results.update(on_one_rank(device, rank))
    results["evaluations"] = list(evaluations())
    gathered = [None, None]
    dist.all_gather_object(gathered, results)
    if dist.get_rank() == 0:
        print(json.dumps({case: [part[case] for part in gathered] for case in results}))


processes.run_group(main)
