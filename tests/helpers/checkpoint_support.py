"""What the checkpoint tests share: small runs, and a disk that fails on order."""

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from helpers.checkpoint import CheckpointError, list_checkpoints, read_checkpoint

torch.set_num_threads(1)  # the tensors are small, and xdist has taken the cores


def fingerprint(value: Any) -> Any:
    """Equal for two values if and only if they are the same to the last bit."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return str(value.dtype), tuple(value.shape), raw.numpy().tobytes()
    if isinstance(value, dict):
        return [(key, fingerprint(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [fingerprint(item) for item in value]
    return repr(value)


def everything(**parts: Any) -> Any:
    """The fingerprint of the parts and of all random states."""
    states = {key: part and part.state_dict() for key, part in parts.items()}
    numbers = np.random.get_state()[1].tolist()
    return fingerprint([states, random.getstate(), numbers, torch.get_rng_state()])


class Noisy(Dataset):
    """24 samples, each changed by all three random number generators when read."""

    def __init__(self) -> None:
        made = torch.Generator().manual_seed(5)
        self.x = torch.rand(24, 4, generator=made)
        self.y = torch.randint(0, 3, (24,), generator=made)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.rand(4) + random.random() + np.random.rand()
        return self.x[index] + 0.1 * noise, self.y[index]


def small_model(classes: int = 3) -> nn.Sequential:
    """With BatchNorm (buffers) and dropout (random numbers)."""
    layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, classes)
    return nn.Sequential(*layers)


class Run:
    """A training run with everything that one can have, built from a seed."""

    def __init__(
        self,
        seed: int = 0,
        optimizer: Callable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        scheduler: Callable = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(
            o, 6
        ),
        generator: bool = True,
        **loader_options: Any,
    ) -> None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.model, self.losses = small_model(), []
        self.optimizer = optimizer(self.model.parameters())
        self.scheduler = scheduler(self.optimizer)
        self.generator = torch.Generator().manual_seed(seed) if generator else None
        self.loader = DataLoader(
            Noisy(), 8, shuffle=True, generator=self.generator, **loader_options
        )

    def parts(self) -> dict[str, Any]:
        names = ("model", "optimizer", "scheduler", "generator")
        return {name: getattr(self, name) for name in names}

    def train(self, epochs: int) -> "Run":
        self.model.train()
        for _ in range(epochs):
            for x, y in self.loader:
                loss = nn.functional.cross_entropy(self.model(x), y)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.losses.append(loss.item())
            if self.scheduler:
                self.scheduler.step()
        return self

    def state(self) -> Any:
        generator = self.generator and fingerprint(self.generator.get_state())
        parts = {key: part for key, part in self.parts().items() if key != "generator"}
        return everything(**parts), generator


def epochs(folder: Path) -> list[int]:
    """The epochs listed in the folder; every file must verify."""
    return [read_checkpoint(file)["epoch"] for file in list_checkpoints(folder)]


def unreadable(folder: Path) -> list[Path]:
    bad = []
    for file in list_checkpoints(folder):
        try:
            read_checkpoint(file)
        except CheckpointError:
            bad.append(file)
    return bad


def strays(folder: Path) -> list[str]:
    """What stands in the folder beside the checkpoints."""
    return sorted({f.name for f in folder.iterdir()} - set(names(folder)))


def names(folder: Path) -> list[str]:
    return [file.name for file in list_checkpoints(folder)]


def flip_a_bit(file: Path) -> None:
    """In a tensor's bytes, where `torch.load` does not notice it."""
    content = torch.load(file, weights_only=True)
    tensor = next(t for t in content["model_state_dict"].values() if t.numel() > 3)
    raw = bytearray(file.read_bytes())
    raw[raw.index(tensor.numpy().tobytes())] ^= 1
    file.write_bytes(raw)
    torch.load(file, weights_only=True)


@contextlib.contextmanager
def mounted(folder: Path, options: str = "size=2m") -> Iterator[None]:
    """A real file system of 2 MiB at `folder`, where this process may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may write and delete anywhere; so not as root."""
    as_root = os.geteuid() == 0
    if as_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if as_root:
            os.seteuid(0)


OPERATIONS = {
    "open": "open",
    "os.rename": "rename",
    "os.remove": "delete",
    "os.mkdir": "mkdir",
    "os.listdir": "list",
    "os.scandir": "list",
}
_asked: list[Callable[[str, str], None]] = []


def _audit(event: str, args: tuple) -> None:
    if _asked and event in OPERATIONS and args:
        _asked[-1](OPERATIONS[event], str(args[0]))


sys.addaudithook(_audit)


@contextlib.contextmanager
def failing(
    folder: Path, fail: Callable[[str, int], OSError | None] = lambda *_: None
) -> Iterator[list[str]]:
    """Asks `fail(operation, number)` before each operation on the folder, from 1 on.

    Python itself announces them (`sys.addaudithook`), except fsync. Yields the list of
    the operations so far.
    """
    log, fsync = [], os.fsync

    def ask(operation: str, path: str) -> None:
        if path.startswith(str(folder)):
            log.append(operation)
            if error := fail(operation, len(log)):
                raise error

    def asked_fsync(descriptor: int) -> None:
        ask("fsync", str(folder))
        fsync(descriptor)

    _asked.append(ask)
    os.fsync = asked_fsync
    try:
        yield log
    finally:
        os.fsync = fsync
        _asked.pop()
