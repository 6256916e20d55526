"""What the checkpoint tests share: small trainings, and disks that fail on order."""

import errno
import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
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


def small_model(classes: int = 3, width: int = 8) -> nn.Sequential:
    """With BatchNorm (buffers) and dropout (random numbers)."""
    return nn.Sequential(
        nn.Linear(4, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(width, classes),
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


@dataclass
class Training:
    """Everything that a training consists of, built anew from a seed."""

    seed: int = 0
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd
    workers: int = 0
    with_scheduler: bool = True
    with_generator: bool = True
    persistent: bool = False
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        random.seed(self.seed)
        np.random.seed(self.seed)
        torch.manual_seed(self.seed)
        self.model = small_model()
        self.optimizer = self.build_optimizer(self.model)
        self.scheduler = self.generator = None
        if self.with_scheduler:
            self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.7)
        if self.with_generator:
            self.generator = torch.Generator().manual_seed(self.seed)
        self.loader = DataLoader(
            Noisy(),
            batch_size=8,
            shuffle=True,
            num_workers=self.workers,
            generator=self.generator,
            persistent_workers=self.persistent,
        )

    def parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "generator": self.generator,
        }

    def train(self, first: int, last: int) -> "Training":
        for _ in range(first, last + 1):
            self.model.train()
            for x, y in self.loader:
                loss = nn.functional.cross_entropy(self.model(x), y)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.losses.append(loss.item())
            if self.scheduler:
                self.scheduler.step()
        return self

    def state(self) -> dict[str, Any]:
        """The fingerprints of what training changes."""
        return {
            "model": fingerprint(self.model.state_dict()),
            "optimizer": fingerprint(self.optimizer.state_dict()),
            "scheduler": self.scheduler and fingerprint(self.scheduler.state_dict()),
            "generator": self.generator and fingerprint(self.generator.get_state()),
            "torch": fingerprint(torch.get_rng_state()),
            "python": random.getstate(),
            "numpy": fingerprint(np.random.get_state()[1].tolist()),
        }


def good_epochs(folder: Path) -> list[int]:
    """The epochs listed in the folder, after a look that every file verifies."""
    return [read_checkpoint(file)["epoch"] for file in list_checkpoints(folder)]


def strays(folder: Path) -> list[str]:
    """What stands in the folder beside the checkpoints."""
    listed = {file.name for file in list_checkpoints(folder)}
    return sorted(file.name for file in folder.iterdir() if file.name not in listed)


def unreadable(folder: Path) -> list[Path]:
    bad = []
    for file in list_checkpoints(folder):
        try:
            read_checkpoint(file)
        except CheckpointError:
            bad.append(file)
    return bad


class Disk:
    """Counts and names the operations under one folder, and fails on order.

    `fail(operation, number)` is asked before each one and returns an OSError to raise,
    or None. Operations: mkdir, list, open, write, fsync, read, replace, delete.
    """

    def __init__(self, fail: Callable[[str, int], OSError | None]) -> None:
        self.fail, self.log = fail, []

    def step(self, operation: str) -> None:
        self.log.append(operation)
        if error := self.fail(operation, len(self.log)):
            raise error

    @contextmanager
    def under(self, folder: Path) -> Iterator["Disk"]:
        disk, names = self, {"mkdir": "mkdir", "iterdir": "list", "unlink": "delete"}
        names["replace"] = "replace"
        real_open, real_fsync = Path.open, os.fsync
        real = {name: getattr(Path, name) for name in names}

        class Stream(io.FileIO):
            def write(self, data: Any) -> int:
                disk.step("write")
                return super().write(data)

        def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not path.is_relative_to(folder):
                return real_open(path, mode, *args, **kwargs)
            disk.step("open" if "w" in mode else "read")
            if "w" in mode:
                return io.BufferedWriter(Stream(path, mode.replace("b", "")))
            return real_open(path, mode, *args, **kwargs)

        def fsync(descriptor: int) -> None:
            disk.step("fsync")
            real_fsync(descriptor)

        def patched(name: str) -> Callable:
            def call(path: Path, *args: Any, **kwargs: Any) -> Any:
                if path.is_relative_to(folder):
                    disk.step(names[name])
                return real[name](path, *args, **kwargs)

            return call

        try:
            Path.open, os.fsync = opened, fsync
            for name in names:
                setattr(Path, name, patched(name))
            yield self
        finally:
            Path.open, os.fsync = real_open, real_fsync
            for name, function in real.items():
                setattr(Path, name, function)


def always(operation: str, number: int) -> Callable[[str, int], OSError | None]:
    """Each such operation fails with this errno."""
    return lambda name, _: (
        OSError(number, os.strerror(number)) if name == operation else None
    )


FULL, GONE, IO_ERROR = errno.ENOSPC, errno.ENOTCONN, errno.EIO
