"""Saving safely: time against the usual ways, and what is readable after a kill.

python -m benchmarks.checkpoint kill WAY FOLDER KILLS
python -m benchmarks.checkpoint load WAY FILE
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torchvision import models
from tqdm import tqdm

from benchmarks.common import (
    Outcome,
    fresh,
    in_turn,
    peak_mib,
    ratio,
    threads,
    timing_table,
)

NAME, TITLE = "checkpoint", "Saving and loading checkpoints"
OURS, PLAIN = "helpers.checkpoint", "torch.save"
Save = Callable[[Path, int, nn.Module, Any], None]


def plain(folder: Path, epoch: int, model: nn.Module, optimizer: Any) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, folder / f"{epoch}.pt")


def synced(folder: Path, epoch: int, model: nn.Module, optimizer: Any) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with (folder / "tmp").open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    (folder / "tmp").replace(folder / f"{epoch}.pt")


def by_safetensors(folder: Path, epoch: int, model: nn.Module, optimizer: Any) -> None:
    """Tensors alone, by name: the optimizer's as well, its settings not."""
    from safetensors.torch import save_file

    tensors = dict(model.state_dict())
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{key}": value
            for key, value in values.items()
            if isinstance(value, torch.Tensor)
        }
    save_file(tensors, folder / f"{epoch}.pt")


def by_dcp(folder: Path, epoch: int, model: nn.Module, optimizer: Any) -> None:
    import torch.distributed.checkpoint as dcp

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with warnings.catch_warnings():  # that there is one process is the intent
        warnings.simplefilter("ignore", UserWarning)
        dcp.save(state, checkpoint_id=folder / f"{epoch}.pt", no_dist=True)


def by_accelerate(folder: Path, epoch: int, model: nn.Module, optimizer: Any) -> None:
    from accelerate.utils import save

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    save(state, folder / f"{epoch}.pt", safe_serialization=False)


def by_lightning(folder: Path, epoch: int, model: nn.Module, optimizer: Any) -> None:
    from lightning.fabric.plugins.io import TorchCheckpointIO

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    TorchCheckpointIO().save_checkpoint(state, folder / f"{epoch}.pt")


def by_ours(folder: Path, epoch: int, model: nn.Module, optimizer: Any) -> None:
    from helpers.checkpoint import save_checkpoint

    save_checkpoint(folder, epoch=epoch, model=model, optimizer=optimizer)


WAYS: dict[str, Save] = {
    PLAIN: plain,
    "torch.save, fsync, replace": synced,
    "safetensors": by_safetensors,
    "distributed.checkpoint": by_dcp,
    "accelerate": by_accelerate,
    "Lightning": by_lightning,
    OURS: by_ours,
}


def readable(path: Path) -> bool:
    """Does it load, by the way it was meant to be loaded, and is it whole?"""
    try:
        if path.is_dir():
            from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

            dcp_to_torch_save(path, path.with_suffix(".read"))
        elif path.name.startswith("checkpoint_model_"):
            from helpers.checkpoint import read_checkpoint

            read_checkpoint(path)
        else:
            try:
                torch.load(path, weights_only=True)
            except Exception:
                from safetensors.torch import load_file

                load_file(path)
    except (Exception, CheckpointException):  # whatever kind: it can't be read
        return False
    return True


def epoch_of(path: Path) -> int:
    return int(path.stem.split("_")[2] if "_" in path.stem else path.stem)


def checkpoints(folder: Path) -> list[Path]:
    found = [*folder.glob("[0-9]*.pt"), *folder.glob("checkpoint_model_*.pt")]
    return sorted(found, key=epoch_of)


def trained(model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    """With SGD's momentum buffers there, as after a first step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones(1).expand(parameter.shape)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def time_saves(model: nn.Module, rounds: int, what: str, scratch: Path) -> dict:
    model, optimizer = trained(model)
    ways, numbers = {}, iter(range(1, 10_000))
    for name, save in WAYS.items():
        folder = scratch / name.replace(" ", "_")

        def way(save: Save = save, folder: Path = folder) -> None:
            save(folder, next(numbers), model, optimizer)

        ways[name] = way

    def measure(way: Callable[[], None]) -> float:
        folder = way.__defaults__[1]  # of one save each: an empty folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.sync()  # what the way before has left to be written is not this one's
        start = time.perf_counter()
        way()
        return time.perf_counter() - start

    for way in ways.values():
        measure(way)  # imports, and memory that the first one has to get
    return in_turn(ways, rounds, what, measure)


def kill(way: str, folder: Path, kills: int) -> dict[str, int]:
    """Save again and again in a process that is shot; how often is the newest bad?"""
    model, optimizer = trained(nn.Linear(2_500, 2_000))  # 40 MB with its momentum
    moment, bad_newest, bad_any = random.Random(0), 0, 0
    for _ in range(kills):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        child = os.fork()
        if child == 0:
            for epoch in range(1, 100_000):
                WAYS[way](folder, epoch, model, optimizer)
                for old in checkpoints(folder)[:-3]:
                    shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        while not checkpoints(folder):
            time.sleep(0.005)
        time.sleep(moment.uniform(0.1, 0.6))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        verdicts = [readable(path) for path in checkpoints(folder)]
        bad_newest += not verdicts[-1]
        bad_any += not all(verdicts)
    return {"kills": kills, "newest unreadable": bad_newest, "any unreadable": bad_any}


def load(way: str, file: Path) -> dict[str, float]:
    """VGG19 from a file, plainly or in lesson 03's way: seconds and extra peak MiB."""
    before, start = peak_mib(), time.perf_counter()
    if way == "plain":
        model = models.vgg19(weights=None)
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        with torch.device("meta"):
            model = models.vgg19(weights=None)
        state = torch.load(file, mmap=True, weights_only=True)
        model.load_state_dict(state, assign=True)
    loaded_s, loaded_mib = time.perf_counter() - start, peak_mib() - before
    # A mapped file is read where it is used: so use every weight once
    assert all(parameter.sum().isfinite() for parameter in model.parameters())
    return {
        "load, time": loaded_s,
        "load, peak memory": loaded_mib,
        "load and use all, time": time.perf_counter() - start,
        "load and use all, peak memory": peak_mib() - before,
    }


def run(quick: bool = False) -> Outcome:
    threads()
    rounds, kills = (1, 1) if quick else (9, 10)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # 25 million parameters and their momentum: 200 MB
        small = nn.Linear(500, 500) if quick else nn.Linear(5_000, 5_000)
        saves = time_saves(small, rounds, "200 MB", folder)
        vgg = nn.Linear(10, 10) if quick else models.vgg19(weights=None)
        large = time_saves(vgg, 1 if quick else 9, "VGG19, 1.1 GB", folder)
        killed = {
            way: fresh("checkpoint", "kill", way, folder / "killed", kills)
            for way in tqdm(WAYS, desc="killed")
        }
        torch.save(models.vgg19(weights=None).state_dict(), folder / "vgg19.pt")
        loads = {"plain": [], "mmap, meta, assign": []}
        for _ in tqdm(range(1 if quick else 3), desc="loading"):
            for way in loads:
                loads[way].append(fresh("checkpoint", "load", way, folder / "vgg19.pt"))
    table = timing_table(saves, PLAIN).rename(columns={"way": "way to save 200 MB"})
    vgg_ratio = [round(ratio(large, way, PLAIN), 2) for way in WAYS]
    table["VGG19, 1.1 GB, times torch.save"] = vgg_ratio
    for column in ("newest unreadable", "any unreadable"):
        table[f"{column}, of {kills} kills"] = [killed[way][column] for way in WAYS]
    medians = {way: pd.DataFrame(values).median() for way, values in loads.items()}
    fast, slow = medians["mmap, meta, assign"], medians["plain"]
    ratios = {
        "save 200 MB, ours / torch.save": ratio(saves, OURS, PLAIN),
        "save VGG19 with momentum, ours / torch.save": ratio(large, OURS, PLAIN),
        "newest file unreadable after a kill, torch.save": killed[PLAIN][
            "newest unreadable"
        ]
        / kills,
        "newest file unreadable after a kill, ours": killed[OURS]["newest unreadable"]
        / kills,
    }
    for what in slow.index:
        name = f"VGG19, {what}: plain / lesson 03's way"
        ratios[name] = slow[what] / max(fast[what], 1e-3)
    more = [{"VGG19 loaded": way} | dict(row) for way, row in medians.items()]
    more = pd.DataFrame(more).round(2)
    more.columns = [name.replace("time", "s").replace("memory", "MiB") for name in more]
    raw = {"200 MB": saves, "VGG19": large, "killed": killed, "loads": loads}
    return Outcome(table, ratios, raw, more)


def plot(table: pd.DataFrame, axis) -> str:
    times = table[f"times {PLAIN}"]
    bad = table.filter(like="newest unreadable").iloc[:, 0]
    bars = axis.barh(table["way to save 200 MB"], times, color="#0072B2")
    for bar, count in zip(bars, bad, strict=True):
        bar.set_hatch("///" if count else "")
        bar.set_edgecolor("white")
    labels = [
        f"{t:.2f}" + (f", newest file lost in {n} kills" if n else ", nothing lost")
        for t, n in zip(times, bad, strict=True)
    ]
    axis.bar_label(bars, labels, padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.5)
    axis.set(xlabel="time to save 200 MB, times torch.save")
    return "What a safe save costs, and what an unsafe one loses when it is killed"


if __name__ == "__main__":
    # A forked child can't use OpenMP's threads, if the parent has started them
    threads(1 if sys.argv[1] == "kill" else 2)
    if sys.argv[1] == "kill":
        print(json.dumps(kill(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
    else:
        print(json.dumps(load(sys.argv[2], Path(sys.argv[3]))))
