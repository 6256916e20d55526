"""Checkpoints that survive: whole or absent, verified, safe to load, exact to resume.

To use it in your own project, copy this file. The method is that of databases: write
beside the target, fsync, verify, rename (atomic, see `os.replace`), delete older files
last. `torch.load` checks no CRC (github.com/pytorch/pytorch/issues/126952), so that to
verify takes `ZipFile.testzip` for flipped bits, and a load for missing records.
"""

import copy
import os
import random
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import cuda, nn

FORMAT_VERSION = 2
DRIVE = Path("/content/drive")  # where Colab mounts Google Drive
_seen: dict[tuple, float | None] = {}  # files that this process has verified
_NAME = re.compile(r"checkpoint_model_(\d+)_[-+.a-z\d]+_[-+.a-z\d]+\.pt", re.ASCII)


class CheckpointError(RuntimeError):
    """A checkpoint can't be saved, read or used; the message says what to do."""


def save_checkpoint(
    folder: str | Path,
    *,
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    generator: torch.Generator | None = None,
    loss: float | torch.Tensor | None = None,
    acc: float | torch.Tensor | None = None,
    extra: dict[str, Any] | None = None,
    keep_last: int | None = 3,
) -> Path:
    """Save a training run as `checkpoint_model_{epoch}_{loss:.4f}_{acc:.4f}.pt`.

    When this returns, the file is complete, verified and on the disk (on Google Drive:
    handed to Drive's client). When it raises, or the process is killed, earlier files
    are intact. Call it at the end of an epoch, in one process (DDP: rank 0). Not exact
    to resume are persistent workers of a DataLoader and random numbers of Apple's MPS.

    Args:
        epoch: the epoch just finished, 0 or more. Saved again, it replaces its file.
        generator: the one that the training DataLoader was given.
        loss: its lowest value is "the best", so pass the validation loss: the training
            loss falls even when a model gets worse.
        extra: plain values by name, such as a GradScaler's state_dict().
        keep_last: keep so many epochs (2 or more; None: all) and the best. Only files
            that verify count, and they are read if this process has not done so.

    Raises ValueError, OSError where the folder can't be written to, or CheckpointError:
    a later epoch is there, Drive is not mounted, the disk fails, a value is not plain.
    """
    if (epoch := int(epoch)) < 0 or not (keep_last is None or keep_last > 1):
        raise ValueError(f"{epoch=} must be at least 0, and {keep_last=} 2 or None")
    folder, files = Path(folder), list_checkpoints(folder)
    for later, _ in _good([file for file in files if _epoch(file) > epoch]):
        raise CheckpointError(
            f"epoch {epoch} was not saved: {folder} holds epoch {_epoch(later)}. Use a "
            "new folder for a new run; to resume the old run, load it first."
        )
    loss, acc = (None if x is None else float(x) for x in (loss, acc))
    parts = (_unwrap(model), optimizer, scheduler, generator)
    content = {"format_version": FORMAT_VERSION, "forms": _forms(*parts)}
    content |= {"epoch": epoch, "loss": loss, "acc": acc, "extra": dict(extra or {})}
    content |= {key: get() for key, (get, _) in _access(*parts).items()}
    numbers = ["none" if x is None else f"{x:.4f}"[:40] for x in (loss, acc)]
    file = folder / f"checkpoint_model_{epoch}_{'_'.join(numbers)}.pt"
    temporary = folder / f".{file.name}.{os.getpid()}.tmp"
    # An epoch saved again replaces its older file, which is then renamed: never two
    saved = next((old for old in files if _epoch(old) == epoch), file)
    folder.mkdir(parents=True, exist_ok=True)
    free_mib = shutil.disk_usage(folder).free / 2**20
    try:
        with temporary.open("wb") as stream, ThreadPoolExecutor(1) as beside:
            torch.save(content, stream)
            stream.flush()
            synced = beside.submit(os.fsync, stream.fileno())
            _loss(temporary)  # verifies, while the disk is busy
            synced.result()
        temporary.replace(saved)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # Whatever stops torch.save, it raises a RuntimeError of its own over it
        cause = (type(error) is RuntimeError and error.__context__) or error
        if isinstance(cause, PermissionError) or not isinstance(cause, Exception):
            raise cause from None
        words = f"{free_mib:.1f} MiB were free. Save plain values, as float(x). {cause}"
        raise CheckpointError(f"epoch {epoch} was not saved. {words}") from error
    try:
        saved = saved.replace(file)
        _retain(saved, keep_last)
    except (CheckpointError, OSError) as error:
        warnings.warn(f"epoch {epoch} is saved, but then: {error}", stacklevel=2)
    return saved


def load_checkpoint(
    file_or_folder: str | Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Any]:
    """Load a checkpoint into what is passed, or raise and leave everything as it was.

    With `model` alone, only the model is loaded, to evaluate it. With any of the others
    a run is resumed: build and pass everything as for the save, then go on with the
    epoch after the loaded one. The random states are restored last. From a folder the
    newest good file is loaded, after a warning that names each damaged one.

    Returns "epoch", "loss", "acc" and "extra", as saved. Raises FileNotFoundError, or
    CheckpointError: all files are damaged or unsafe, or the file does not fit.
    """
    path = _path(file_or_folder)
    files = list_checkpoints(path) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} has no checkpoint")
    newest = next(_good(files, read_checkpoint), None) if path.is_dir() else None
    path, content = newest or (files[-1], read_checkpoint(files[-1]))
    parts = (_unwrap(model), optimizer, scheduler, generator)
    access, before = _access(*parts), {}
    try:
        for what, there in content["forms"].items() if len(access) > 1 else ():
            if there != (here := _forms(*parts)[what]):
                raise ValueError(f"{what}: {there} in the file, {here} here")
        before = {key: get() for key, (get, _) in access.items()}
        before["model_state_dict"] = copy.deepcopy(before["model_state_dict"])
        for key, (_, put) in access.items():
            put(content[key])
        return {key: content[key] for key in ("epoch", "loss", "acc", "extra")}
    except BaseException as error:
        for key, state in before.items():
            with suppress(Exception):  # fails where it failed, after restoring the rest
                access[key][1](state)
        if not isinstance(error, Exception):
            raise
        raise CheckpointError(
            f"{path} does not fit; nothing was changed. Pass all as at save. {error}"
        ) from error


def read_checkpoint(file: str | Path, mmap: bool = False) -> dict[str, Any]:
    """The content, verified, on the CPU. Raises like a load; `mmap`: see torch.load."""
    file = _path(file)
    try:
        with zipfile.ZipFile(file) as archive:
            # Of a record with this flag torch.load reads nothing, and no CRC covers it
            flags = [info.filename for info in archive.infolist() if info.external_attr]
            if record := archive.testzip() or flags:
                raise ValueError(f"bits of {record} have changed, or CRC-32 was off")
        content = torch.load(file, "cpu", weights_only=True, mmap=mmap)
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {content['format_version']} is unknown")
        if _NAME.fullmatch(file.name) and _epoch(file) != content["epoch"]:
            raise ValueError(f"renamed: it holds epoch {content['epoch']}")
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:
        words = str(error).rpartition("WeightsUnpickler error: ")[2]
        raise CheckpointError(f"{file} is no good checkpoint: {words}") from error
    return content


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in `folder` by their names, oldest epoch first; else []."""
    files = sorted(Path(folder).iterdir()) if _path(folder).exists() else []
    return sorted((f for f in files if _NAME.fullmatch(f.name)), key=_epoch)


def _loss(file: Path) -> float | None:
    """The loss in a file that verifies. An unchanged file is not read a second time."""
    key = (at := file.stat()).st_dev, at.st_ino, at.st_size, at.st_mtime_ns
    if key not in _seen:
        _seen[key] = read_checkpoint(file, mmap=True)["loss"]
    return _seen[key]


def _good(files: list[Path], read: Any = _loss) -> Iterator[tuple[Path, Any]]:
    """The good files and what `read` gives, newest first; it warns of the others."""
    for file in reversed(files):
        try:
            yield file, read(file)
        except (CheckpointError, OSError) as error:
            warnings.warn(f"{file.name} is passed over: {error}", stacklevel=3)


def _retain(new: Path, keep_last: int | None) -> None:
    """Put the new name on the disk; delete what `keep_last` and killed saves leave."""
    with suppress(OSError):  # not every system can sync a folder
        os.fsync(descriptor := os.open(new.parent, os.O_RDONLY))
        os.close(descriptor)
    for temporary in new.parent.glob(".checkpoint_model_*.tmp"):
        with suppress(OSError):  # one written to in the last hour may be in use
            if temporary.stat().st_mtime < new.stat().st_mtime - 3600:
                temporary.unlink()
    if keep_last and len(files := list_checkpoints(new.parent)) > keep_last:
        good = dict(_good(files))
        finite = {f: x for f, x in good.items() if x is not None and np.isfinite(x)}
        keep = {*[*good][:keep_last], min(finite, key=finite.get, default=None)}
        for file in good.keys() - keep:
            file.unlink(missing_ok=True)


def _forms(model: nn.Module, optimizer: Any, scheduler: Any, generator: Any) -> dict:
    """What the state_dicts don't tell and must be equal at the save and at the load."""
    parts = [optimizer, scheduler, *getattr(scheduler, "_schedulers", ()), generator]
    names = {id(p): f"{n} {p.dtype}" for n, p in model.named_parameters()}
    params = [p for g in getattr(optimizer, "param_groups", ()) for p in g["params"]]
    order = [names.get(id(p), str(p.shape)) for p in params]
    return {"kinds": [type(part).__name__ for part in parts], "parameters": order}


def _access(model: nn.Module, optimizer: Any, scheduler: Any, generator: Any) -> dict:
    """How to read and how to write each part of the state, by its name in the file."""
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    parts = {f"{key}_state_dict": p for key, p in parts.items() if p is not None}
    access = {key: (p.state_dict, p.load_state_dict) for key, p in parts.items()}
    if generator:
        access["generator_state"] = (generator.get_state, generator.set_state)
    if len(access) == 1:  # a model alone: nothing to resume
        return access
    access |= {
        "python_random_state": (random.getstate, random.setstate),
        "numpy_random_state": (
            lambda: [np.asarray(part).tolist() for part in np.random.get_state()],
            np.random.set_state,
        ),
        "torch_random_state": (torch.get_rng_state, torch.set_rng_state),
        "cuda_random_states": (  # only where CUDA is in use: to ask would start it
            lambda: cuda.get_rng_state_all() if cuda.is_initialized() else [],
            lambda states: cuda.set_rng_state_all(states[: cuda.device_count()]),
        ),
    }
    return access


def _unwrap(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel and torch.compile."""
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    inner = model.module if parallel else getattr(model, "_orig_mod", None)
    return model if inner is None else _unwrap(inner)


def _epoch(file: Path) -> int:
    return int(_NAME.fullmatch(file.name)[1])


def _path(path: str | Path) -> Path:
    """The path; refused on an unmounted Drive, where files vanish with the session."""
    on_drive = Path(path).resolve().is_relative_to(DRIVE.resolve())
    if on_drive and not os.path.ismount(DRIVE):
        raise CheckpointError(f"{path}: Drive is not mounted at {DRIVE}: mount it")
    return Path(path)
