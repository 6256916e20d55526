"""Checkpoints that survive: whole or not there at all, verified, exact to resume.

For your own project take this file and storage.py; they need PyTorch alone. A file
is one plain dict, and `torch.load(file, weights_only=True)` reads it without this
helper:

    format_version        1
    epoch                 int, the epoch that was finished
    loss, acc             float or None
    model_state_dict      of the model inside DataParallel, DDP and torch.compile
    optimizer_state_dict, scheduler_state_dict, generator_state    each may be None
    python_random_state, numpy_random_state, torch_random_state, cuda_random_states
    forms                 what must be the same for a load: shapes, kinds, order
    extra                 dict, whatever else was given
    save_number           1, 2, ...: how often this epoch was saved in this folder

The file's name is `checkpoint_model_{epoch}_{loss:.4f}_{acc:.4f}.pt`; there "none"
stands for None, "nan", "inf" and "-inf" for themselves, 1.2346e+09 for 1e9 and more.

The method is that of databases: write a temporary file beside the target, fsync,
verify, rename it into place (atomic, see `os.replace`), delete older files last. To
verify takes `ZipFile.testzip` for flipped bits, since torch.load checks no CRC
(github.com/pytorch/pytorch/issues/126952), and a weights-only load for missing parts.
"""

import io
import math
import operator
import os
import pickle
import random
import re
import shutil
import signal
import threading
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.serialization import MAP_LOCATION

from helpers import storage

try:
    import numpy
except ImportError:  # then there is no random state of NumPy's to keep
    numpy = None

FORMAT_VERSION = 1
_PARTS = (
    "epoch loss acc model_state_dict optimizer_state_dict scheduler_state_dict "
    "generator_state python_random_state numpy_random_state torch_random_state "
    "cuda_random_states forms extra save_number"
)
_NUMBER = r"-?\d+\.\d{4}(?:e\+\d+)?|-?inf|nan|none"
_NAME = re.compile(rf"checkpoint_model_(\d+)_({_NUMBER})_({_NUMBER})\.pt", re.ASCII)


class CheckpointError(RuntimeError):
    """A checkpoint can't be saved, read or used; the message says what to do."""


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C takes effect afterwards. (It reaches the main thread alone.)

    Held back it can't be lost, as a KeyboardInterrupt can: Python drops one that is
    raised in a weakref's callback, and some extension modules one in their import.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = []
    signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)


@_ctrl_c_waits()
def save_checkpoint(
    folder: str | Path,
    *,
    epoch: int,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    generator: torch.Generator | None = None,
    loss: float | torch.Tensor | None = None,
    acc: float | torch.Tensor | None = None,
    extra: Mapping[str, Any] | None = None,
    keep_last: int | None = 3,
) -> Path:
    """Save the whole state of a training in `folder` and return the new file.

    When this returns, the file is complete, verified and synced to the disk. When it
    raises, or the process is killed, earlier checkpoints stand as they were. Ctrl-C (a
    notebook's stop button) takes effect after the save. On Google Drive "saved" means
    handed to Drive's client; `storage.flush_drive` waits for the upload.

    Save at the end of an epoch, from one process (DDP: rank 0). A DataLoader with
    `persistent_workers=True` is not exact to resume: its workers keep random states of
    their own, which can't be read.

    Args:
        folder: made if it is not there.
        epoch: the epoch just finished, 0 or more; resume at the next one. Of two saves
            of one epoch the later one wins.
        model: may be wrapped in DataParallel, DDP or torch.compile.
        generator: the one that the training DataLoader was given.
        loss, acc: numbers or one-element tensors.
        extra: plain values by name: numbers, strings, tensors, lists, dicts. For a
            GradScaler `extra={"scaler": scaler.state_dict()}`, and after the load
            `scaler.load_state_dict(checkpoint["extra"]["scaler"])`. A part of a large
            tensor is stored with the whole of it, unless cloned.
        keep_last: keep so many epochs (2 or more), the file with the lowest finite
            loss, and files that can't be read; delete the others. None keeps all.

    Raises:
        ValueError, TypeError: an argument is out of range or of the wrong kind.
        PermissionError: you may not write to the folder.
        CheckpointError: Drive is not mounted; the disk is full or failed; a value is
            not plain; what was written did not verify.
    """
    if (epoch := operator.index(epoch)) < 0:
        raise ValueError(f"epoch={epoch}: epochs count from 0 or 1")
    if keep_last is not None and keep_last < 2:
        raise ValueError(
            f"keep_last={keep_last}: 2 or more, to have one to fall back to"
        )
    folder, model = Path(folder), _unwrap(model)
    same = [file for file in list_checkpoints(folder) if _epoch(file) == epoch]
    content = {
        "format_version": FORMAT_VERSION,
        "epoch": epoch,
        "loss": _number(loss),
        "acc": _number(acc),
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer and optimizer.state_dict(),
        "scheduler_state_dict": scheduler and scheduler.state_dict(),
        "generator_state": generator and generator.get_state(),
        **_random_states(),
        "forms": _forms(model, optimizer, scheduler, generator),
        "extra": dict(extra or {}),
        "save_number": 1
        + max((_glance(f).get("save_number", 0) for f in same), default=0),
    }
    file = folder / _file_name(content)
    temporary = folder / f".{file.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream, ThreadPoolExecutor(1) as beside:
            torch.save(content, stream)
            stream.flush()
            synced = beside.submit(os.fsync, stream.fileno())
            _read(temporary, mmap=True)  # meanwhile, since it is in memory still
            synced.result()
        temporary.replace(file)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        as_it_is = not isinstance(error, Exception)
        if as_it_is or isinstance(error, PermissionError | MemoryError):
            raise
        raise _not_saved(error, content, folder) from error
    _sync(folder)
    try:
        _retain(file, keep_last)
    except (CheckpointError, OSError) as error:
        warnings.warn(f"{file} is saved; older files stay: {error}", stacklevel=3)
    return file


def load_checkpoint(
    file_or_folder: str | Path,
    *,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    generator: torch.Generator | None = None,
    map_location: MAP_LOCATION = "cpu",
) -> dict[str, Any]:
    """Load a checkpoint into what is passed; nothing is touched until all is checked.

    With `model` alone, only the model is loaded, to evaluate it. With any of the others
    a training is resumed: all that was saved must be passed, and the random states are
    put back last. So build everything, then load, then go on with the next epoch:

        checkpoint = load_checkpoint(folder, model=model, optimizer=optimizer)
        for epoch in range(checkpoint["epoch"] + 1, num_epochs + 1): ...

    Args:
        file_or_folder: one file; or a folder, for its newest good checkpoint: a damaged
            one is passed over with a warning that names it.
        model, optimizer, scheduler, generator: built as they were for the save, on any
            device.
        map_location: where the file's tensors are put on the way, as in `torch.load`.

    Returns:
        "epoch" (int), "loss" and "acc" (float or None) and "extra" (dict), as saved.

    Raises:
        FileNotFoundError: no such file, or no checkpoint in the folder.
        CheckpointError: the file is damaged (in a folder: all are), is unsafe to load,
            or does not fit what was passed; Drive is not mounted.
    """
    path = _on_disk(file_or_folder)
    if path.is_dir():
        path, content = _newest(path, map_location)
    else:
        content = _read(path, map_location)
    forms = _forms(_unwrap(model), optimizer, scheduler, generator)
    resume = (optimizer, scheduler, generator) != (None, None, None)
    problems = [
        f"{part} {key}: {there} in the file, {here} here"
        for part in (content["forms"] if resume else ["model"])
        for key in {**content["forms"][part], **forms[part]}
        if (there := content["forms"][part].get(key, "nothing"))
        != (here := forms[part].get(key, "nothing"))
    ]
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointError(
            f"{path} does not fit, and nothing was changed. Build and pass all as for "
            f"the save. {'; '.join(problems[:6])}{more}"
        )
    with _ctrl_c_waits():
        _unwrap(model).load_state_dict(content["model_state_dict"])
        if optimizer:
            optimizer.load_state_dict(content["optimizer_state_dict"])
        if scheduler:
            scheduler.load_state_dict(content["scheduler_state_dict"])
        if generator:
            generator.set_state(content["generator_state"].cpu())
        if resume:
            _set_random_states(content)
    return {key: content[key] for key in ("epoch", "loss", "acc", "extra")}


def read_checkpoint(file: str | Path) -> dict[str, Any]:
    """All that the file holds (see the top of this module), verified, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is damaged, unsafe to load, or no checkpoint.
    """
    return _read(_on_disk(file))


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in `folder`, oldest epoch first; [] if it is not there.

    Found by their names and ordered by the epochs' numbers, never by time stamps; where
    an epoch stands twice, the later save is last. Other files are passed over.

    Raises:
        CheckpointError: Drive is not mounted.
    """
    try:
        files = [f for f in _on_disk(folder).iterdir() if _NAME.fullmatch(f.name)]
    except FileNotFoundError:
        return []
    epochs = [_epoch(file) for file in files]

    def order(file: Path) -> tuple[int, float, str]:
        twice = epochs.count(_epoch(file)) > 1
        number = _glance(file).get("save_number", math.inf) if twice else 0
        return _epoch(file), number, file.name

    return sorted(files, key=order)


def _read(
    file: Path, where: MAP_LOCATION = "cpu", testzip: bool = True, mmap: bool = False
) -> dict[str, Any]:
    """The file's content, checked. With `mmap` the load reads no tensor's bytes."""
    try:
        with file.open("rb") as stream:
            if testzip and (record := zipfile.ZipFile(stream).testzip()):
                raise zipfile.BadZipFile(f"CRC-32 of {record} is wrong")
            stream.seek(0)
            source = file if mmap else stream
            content = torch.load(source, where, weights_only=True, mmap=mmap)
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds objects, such as a whole model; loading them can run any "
            "code. If you trust it: torch.load(file, weights_only=False), then "
            "save_checkpoint, which stores the model's state_dict."
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"{file} is damaged or can't be read: {str(error) or repr(error)}. To "
            "load its folder takes the newest good checkpoint."
        ) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {version}, this helper reads {FORMAT_VERSION}. "
            "torch.load(file, weights_only=True) shows what it holds."
        )
    if missing := [part for part in _PARTS.split() if part not in content]:
        raise CheckpointError(
            f"{file} is none of this helper's checkpoints: {missing} not found"
        )
    if _NAME.fullmatch(file.name) and file.name != (right := _file_name(content)):
        raise CheckpointError(f"{file} was renamed: by its content it is {right}")
    return content


def _glance(file: Path) -> dict[str, Any]:
    """The content, without a look at the tensors' bytes; {} if it can't be read."""
    with suppress(CheckpointError, OSError):
        return _read(file, testzip=False, mmap=True)
    return {}


def _newest(folder: Path, map_location: MAP_LOCATION) -> tuple[Path, dict[str, Any]]:
    """The newest good checkpoint, after a warning for each damaged one."""
    problems = []
    for file in reversed(list_checkpoints(folder)):
        try:
            return file, _read(file, map_location)
        except (CheckpointError, OSError) as error:
            problems.append(str(error))
            warnings.warn(f"{file.name} is passed over: {error}", stacklevel=3)
    if problems:
        raise CheckpointError(f"{folder} has no good checkpoint: {' '.join(problems)}")
    raise FileNotFoundError(f"{folder} has no checkpoint: save one, or start anew")


def _forms(
    model: nn.Module, optimizer: Any, scheduler: Any, generator: Any
) -> dict[str, dict[str, str]]:
    """What must be the same at the save and at the load, in words."""

    def form(value: Any) -> str:
        if not isinstance(value, torch.Tensor):
            return "no tensor"
        return f"{value.dtype} {tuple(value.shape)}{' on meta' * value.is_meta}"

    forms = {"model": {k: form(v) for k, v in model.state_dict().items()}}
    forms["optimizer"] = {"kind": type(optimizer).__name__} if optimizer else {}
    forms["scheduler"] = {"kind": type(scheduler).__name__} if scheduler else {}
    forms["generator"] = {"device": generator.device.type} if generator else {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for i, group in enumerate(optimizer.param_groups if optimizer else []):
        for j, p in enumerate(group["params"]):
            name = names.get(id(p), "not the model's")
            forms["optimizer"][f"group {i}, parameter {j}"] = f"{name} {form(p)}"
    return forms


def _random_states() -> dict[str, Any]:
    """All random states. CUDA's only where it is in use: to ask would start it."""
    state = numpy and numpy.random.get_state(legacy=False)
    if numpy and "key" in state["state"]:  # an array, which a safe load refuses
        state["state"]["key"] = state["state"]["key"].tolist()
    used = torch.cuda.is_initialized()
    return {
        "python_random_state": random.getstate(),
        "numpy_random_state": state,
        "torch_random_state": torch.get_rng_state(),
        "cuda_random_states": torch.cuda.get_rng_state_all() if used else [],
    }


def _set_random_states(content: dict[str, Any]) -> None:
    """Put the random states back, CUDA's for as many devices as are here."""
    random.setstate(content["python_random_state"])
    if numpy and content["numpy_random_state"]:
        numpy.random.set_state(content["numpy_random_state"])
    torch.set_rng_state(content["torch_random_state"].cpu())
    cuda = content["cuda_random_states"][: torch.cuda.device_count()]
    for device, state in enumerate(cuda):
        torch.cuda.set_rng_state(state.cpu(), device)


def _unwrap(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel and torch.compile."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    inner = getattr(model, "_orig_mod", None)
    return _unwrap(inner) if isinstance(inner, nn.Module) else model


def _number(value: float | torch.Tensor | None) -> float | None:
    if value is None:
        return None
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


def _file_name(content: dict[str, Any]) -> str:
    def text(value: float | None) -> str:
        if value is None:
            return "none"
        return f"{value:.4e}" if 1e9 <= abs(value) < math.inf else f"{value:.4f}"

    loss, acc = text(content["loss"]), text(content["acc"])
    return f"checkpoint_model_{content['epoch']}_{loss}_{acc}.pt"


def _epoch(file: Path) -> int:
    return int(_NAME.fullmatch(file.name)[1])


def _on_disk(path: str | Path) -> Path:
    """The path, which is not on an unmounted Drive."""
    try:
        storage.check_mounted(path)
    except storage.StorageError as error:
        raise CheckpointError(str(error)) from error
    return Path(path)


def _not_saved(error: Exception, content: dict[str, Any], folder: Path) -> Exception:
    """The error to raise in place of the one that stopped a save."""
    what = f"epoch {content['epoch']} was not saved, earlier checkpoints are untouched"
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__  # torch.save covers the system's own error
    if isinstance(error, OSError):
        free = "?"
        with suppress(OSError):
            free = f"{shutil.disk_usage(folder).free / 2**20:.1f}"
        return CheckpointError(
            f"{what}: {error}. {free} MiB are free in {folder}. Make room, or mount "
            "Drive again (its Errno 5: the quota may be full), and save again."
        )
    if refused := list(_refused(content)):
        return CheckpointError(
            f"{what}: a safe load refuses {', '.join(refused[:6])}. Store plain "
            "values: float(x), x.tolist(), str(path), an object's state_dict()."
        )
    hint = "Is torch.serialization.set_crc32_options(False) in use? It must not be."
    return CheckpointError(f"{what}: {error} {hint if 'CRC-32' in str(error) else ''}")


def _refused(value: Any, where: str = "") -> Iterator[str]:
    """Where the values are that can't be stored, or that a safe load refuses."""
    if type(value) in (dict, OrderedDict, list, tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            inside = f"{where}[{key!r}]" if where else key
            yield from _refused(key, f"the key of {inside}")
            yield from _refused(item, inside)
    elif type(value) not in (type(None), bool, int, float, str, torch.Tensor):
        try:
            torch.save(value, trial := io.BytesIO())
            trial.seek(0)
            torch.load(trial, weights_only=True)
        except Exception:
            yield f"{where} ({type(value).__module__}.{type(value).__qualname__})"


def _sync(folder: Path) -> None:
    """Put the new name on the disk, too, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _retain(new: Path, keep_last: int | None) -> None:
    """Delete what is neither new, of the last epochs, the best, nor unreadable."""
    for temporary in new.parent.glob(".checkpoint_model_*.tmp"):
        with suppress(OSError):  # one that was written to in the last hour is in use
            if temporary.stat().st_mtime < time.time() - 3600:
                temporary.unlink()
    files = list_checkpoints(new.parent)
    if (last := max(map(_epoch, files), default=0)) > _epoch(new):
        warnings.warn(
            f"epoch {_epoch(new)} is saved, but {new.parent} holds epoch {last}, and "
            "to load the folder takes that one. Give a new run a new folder.",
            stacklevel=4,
        )
    if keep_last is None:
        return
    losses = {f: content["loss"] for f in files if (content := _glance(f))}
    latest = {_epoch(file): file for file in losses}  # of an epoch's saves the last
    finite = {f: x for f, x in losses.items() if x is not None and math.isfinite(x)}
    best = [min(finite, key=finite.__getitem__)] if finite else []
    for file in losses.keys() - {new, *list(latest.values())[-keep_last:], *best}:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"{file} was not deleted: {error}", stacklevel=4)
