"""One epoch of training, evaluation, and seeding."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

Batch = tuple[torch.Tensor, torch.Tensor]
LossFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def pick_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's random numbers, on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Put back the states of Python's, NumPy's and PyTorch's random numbers."""
    python, numpy = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[Batch],
    loss_fn: LossFn,
    optimizer: torch.optim.Optimizer,
) -> tuple[float, float]:
    """Train once over the loader's batches, in train mode, on the model's device.

    Args:
        model: maps (B, ...) to logits (B, C).
        loader: yields (inputs (B, ...), labels (B,)).
        loss_fn: the mean loss of a batch, as a scalar tensor.

    Returns:
        The mean loss and the accuracy (0..1) over the epoch's samples, each counted as
        it was when its batch was trained on.

    Raises:
        ValueError: the loader is empty.
    """
    model.train()
    device, total = _device_of(model), _Mean()
    for inputs, labels in loader:
        inputs, labels = inputs.to(device), labels.to(device)
        logits = model(inputs)
        loss = loss_fn(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total.add(logits, labels, loss)
    return total.result()


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Iterable[Batch], loss_fn: LossFn
) -> tuple[float, float]:
    """The mean loss and accuracy (0..1) over the loader, in eval mode.

    Every module's mode is put back afterwards. Arguments and errors as for
    `train_one_epoch`.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        device, total = _device_of(model), _Mean()
        for inputs, labels in loader:
            inputs, labels = inputs.to(device), labels.to(device)
            logits = model(inputs)
            total.add(logits, labels, loss_fn(logits, labels))
        return total.result()
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Mean:
    """Mean loss and accuracy over batches of different sizes."""

    def __init__(self) -> None:
        self.loss, self.correct, self.count = 0.0, 0, 0

    def add(
        self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor
    ) -> None:
        self.loss += loss.item() * len(labels)
        self.correct += int((logits.argmax(1) == labels).sum())
        self.count += len(labels)

    def result(self) -> tuple[float, float]:
        if not self.count:
            raise ValueError("the loader gave no batch: is its data set empty?")
        return self.loss / self.count, self.correct / self.count
