"""Disks that fill, fail and vanish, and a Drive that is not mounted."""

import contextlib
import errno
import os
import resource
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_support import (
    epochs,
    failing,
    mounted,
    names,
    ordinary_user,
    strays,
    unreadable,
)
from torch import nn

from helpers import checkpoint
from helpers.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)

MODEL = nn.Linear(200, 200)  # 160 kB


def save(folder: Path, epoch: int, **options: object) -> Path:
    return save_checkpoint(folder, epoch=epoch, model=MODEL, **options)


# --- a full disk


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """As with a quota: a write beyond so many bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1000, 100_000, 160_000])
def test_a_write_that_fails_at_any_place(tmp_path: Path, size: int) -> None:
    old = save(tmp_path, 1)
    before = old.read_bytes()
    for epoch in (1, 2):
        with (
            no_file_above(size),
            pytest.raises(CheckpointError, match="too large") as e,
        ):
            save(tmp_path, epoch)
        assert "MiB were free" in str(e.value)
    assert old.read_bytes() == before
    assert names(tmp_path) == [old.name]
    assert strays(tmp_path) == []
    save(tmp_path, 2)


def test_a_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path):
        old = save(tmp_path, 1)
        before = old.read_bytes()
        for epoch, size in ((1, 700), (2, 700), (2, 725)):  # 1.9 and 2.1 MB
            with pytest.raises(CheckpointError, match=r"1\.\d MiB were free.*No space"):
                save_checkpoint(tmp_path, epoch=epoch, model=nn.Linear(size, size))
            assert old.read_bytes() == before
            assert strays(tmp_path) == []
        save(tmp_path, 2)  # a smaller one still fits
        assert epochs(tmp_path) == [1, 2]


# --- operations that fail


@pytest.mark.parametrize("lasting", [False, True], ids=["glitch", "vanished"])
def test_a_disk_that_fails_at_its_nth_operation(tmp_path: Path, lasting: bool) -> None:
    """At each one in turn: the state is that before the save, or that after it."""

    def three(folder: Path) -> Path:
        for epoch in (1, 2, 3):
            save(folder, epoch, keep_last=2)
        return folder

    with failing(three(tmp_path / "count")) as log:
        save(tmp_path / "count", 4, keep_last=2)
    raised = returned = 0
    for at in range(1, len(log) + 1):
        folder = three(tmp_path / str(at))
        before = {file: file.read_bytes() for file in list_checkpoints(folder)}

        def fail(_: str, number: int, at: int = at) -> OSError | None:
            gone = number >= at if lasting else number == at
            return (
                OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)) if gone else None
            )

        saved, problem = None, ""
        with failing(folder, fail), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                saved = save(folder, 4, keep_last=2)
            except (CheckpointError, OSError) as error:
                problem = str(error)
        listed = list_checkpoints(folder)
        assert unreadable(folder) == []
        if saved:
            assert listed[-1] == saved
            assert listed[-2].read_bytes() == before[listed[-2]]
        else:
            assert {file: file.read_bytes() for file in listed} == before
            assert os.strerror(errno.ENOTCONN) in problem
        assert lasting or strays(folder) == []
        raised, returned = raised + (not saved), returned + bool(saved)
    print(f"{len(log)} operations: {raised} raised, {returned} had saved")
    assert raised >= 5
    assert returned >= 5


def test_a_file_that_can_not_be_read_now_is_passed_over_and_kept(
    tmp_path: Path,
) -> None:
    for epoch in (1, 2):
        save(tmp_path, epoch, keep_last=2)
    newest = list_checkpoints(tmp_path)[-1]
    os.utime(newest)  # as if another process had saved it: it is to be read again
    unreachable = OSError(errno.EIO, os.strerror(errno.EIO))
    with failing(newest, lambda name, _: unreachable if name == "open" else None):
        with pytest.warns(UserWarning, match=f"{newest.name}.*Input/output error"):
            assert load_checkpoint(tmp_path, model=MODEL)["epoch"] == 1
        for epoch in (3, 4, 5):
            with pytest.warns(UserWarning, match=newest.name):
                save(tmp_path, epoch, keep_last=2)
    assert epochs(tmp_path) == [2, 4, 5]


def test_a_read_only_folder() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "mine"
        save(folder, 1)
        Path(name).chmod(0o755)
        folder.chmod(0o555)
        with ordinary_user():
            assert epochs(folder) == [1]
            with pytest.raises(PermissionError, match="checkpoint_model_2"):
                save(folder, 2)
            with pytest.raises(PermissionError, match="new"):
                save(folder / "new", 2)
        folder.chmod(0o755)
        assert epochs(folder) == [1]
        assert strays(folder) == []


# --- Drive


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Drive's place, where it is not mounted."""
    monkeypatch.setattr(checkpoint, "DRIVE", tmp_path / "drive")
    return tmp_path / "drive"


@pytest.mark.parametrize("way", ["direct", "symlink", "relative"])
def test_a_drive_that_is_not_mounted(
    drive: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(drive / "MyDrive")
    ways = {"direct": drive / "MyDrive", "symlink": tmp_path / "link"}
    folder = ways.get(way, Path("drive/MyDrive")) / "run"
    file = folder / "checkpoint_model_1_none_none.pt"
    for call in (
        lambda: save(folder, 1),
        lambda: list_checkpoints(folder),
        lambda: load_checkpoint(folder, model=MODEL),
        lambda: load_checkpoint(file, model=MODEL),
        lambda: read_checkpoint(file),
    ):
        with pytest.raises(CheckpointError, match="not mounted"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["link"], "something was made"


def test_a_mounted_drive_and_one_that_goes(drive: Path, tmp_path: Path) -> None:
    save(tmp_path / "content", 1)  # a folder of Colab's own disk
    drive.mkdir()
    with mounted(drive):
        save(drive / "MyDrive" / "run", 1)
        assert epochs(drive / "MyDrive" / "run") == [1]
    with pytest.raises(CheckpointError, match="not mounted"):
        save(drive / "MyDrive" / "run", 2)
    assert [*drive.iterdir()] == []
