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
    """The CUDA GPU where there is one, else the CPU.

    Apple's MPS is left out: it has no float64, and its results differ from the ones
    that the lessons show and compare to the last bit.
    """
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

    The device is the CPU or a CUDA GPU: see `pick_device` on Apple's MPS.

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
    """Mean loss and accuracy over batches of different sizes.

    The sums stay on the device until the end: to read one, the CPU has to wait until
    the GPU has caught up, and can't hand it the next batch meanwhile.
    """

    def __init__(self) -> None:
        self.loss: torch.Tensor | float = 0.0  # float64, as Python's own sums are
        self.correct: torch.Tensor | int = 0
        self.count = 0

    def add(
        self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor
    ) -> None:
        self.loss = self.loss + loss.detach().double() * len(labels)
        self.correct = self.correct + (logits.argmax(1) == labels).sum()
        self.count += len(labels)

    def result(self) -> tuple[float, float]:
        if not self.count:
            raise ValueError("the loader gave no batch: is its data set empty?")
        return float(self.loss) / self.count, int(self.correct) / self.count
