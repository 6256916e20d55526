"""Disks that fill, fail and vanish; Drive is played by a folder with faults."""

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_support import (
    FULL,
    GONE,
    IO_ERROR,
    Disk,
    always,
    fingerprint,
    good_epochs,
    strays,
    unreadable,
)
from torch import nn

from helpers import storage
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB, where this process may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount: the full disk is the injected one alone")
    print("a real full disk: tmpfs of 2 MiB")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_case_04_a_real_disk_is_full(small_disk: Path) -> None:
    old = save(small_disk, 1)
    before = old.read_bytes()
    for epoch, big in ((2, 700), (1, 700), (3, 725)):  # 1.9 and 2.1 MB
        with pytest.raises(CheckpointError, match=r"No space left.*1\.\d MiB are free"):
            save_checkpoint(small_disk, epoch=epoch, model=nn.Linear(big, big))
        assert old.read_bytes() == before
        assert strays(small_disk) == []
    assert good_epochs(small_disk) == [1]
    save(small_disk, 2)  # a smaller one still fits
    assert good_epochs(small_disk) == [1, 2]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_case_04_an_injected_disk_is_full(tmp_path: Path, after: int) -> None:
    """The write after so many good ones fails, and all that follow."""
    old = save(tmp_path, 1)
    before = old.read_bytes()
    print("an injected full disk: write raises ENOSPC")
    writes = [0]

    def fail(operation: str, _: int) -> OSError | None:
        writes[0] += operation == "write"
        if operation == "write" and writes[0] > after:
            return OSError(FULL, os.strerror(FULL))
        return None

    for epoch in (1, 2):
        with (
            Disk(fail).under(tmp_path),
            pytest.raises(CheckpointError, match=r"No space left.*MiB are free"),
        ):
            save(tmp_path, epoch)
        assert writes[0] > after
        writes[0] = 0
    assert old.read_bytes() == before
    assert good_epochs(tmp_path) == [1]
    assert strays(tmp_path) == []


# --- failing operations


@pytest.mark.parametrize("number", [FULL, IO_ERROR, GONE, errno.EDQUOT])
@pytest.mark.parametrize(
    "operation",
    ["write", "fsync", "replace", "open"],
    ids=["write", "case_09_fsync", "case_10_replace", "open"],
)
def test_case_09_10_13_a_failing_operation(
    tmp_path: Path, operation: str, number: int
) -> None:
    """Raised with the system's own words, old files intact, the new one not listed."""
    old = save(tmp_path, 1, loss=0.5)
    before = old.read_bytes()
    for epoch in (1, 2):
        disk = Disk(always(operation, number))
        words = f"Errno {number}.*{os.strerror(number)}"
        with disk.under(tmp_path), pytest.raises(CheckpointError, match=words):
            save(tmp_path, epoch, loss=0.5)
        assert operation in disk.log
    assert old.read_bytes() == before
    assert good_epochs(tmp_path) == [1]
    assert strays(tmp_path) == []


@pytest.mark.parametrize("lasting", [False, True], ids=["glitch", "vanished"])
def test_case_13_the_disk_fails_at_its_nth_operation(
    tmp_path: Path, lasting: bool
) -> None:
    """At each one in turn: the state is that before the save, or that after it."""
    counting = Disk(lambda *_: None)
    for epoch in (1, 2, 3):
        save(tmp_path / "count", epoch, keep_last=2)
    with counting.under(tmp_path / "count"):
        save(tmp_path / "count", 4, keep_last=2)
    raised = returned = 0
    for at in range(1, len(counting.log) + 1):
        folder = tmp_path / str(at)
        for epoch in (1, 2, 3):
            save(folder, epoch, keep_last=2)
        before = {file: file.read_bytes() for file in list_checkpoints(folder)}

        def fail(_: str, number: int, at: int = at) -> OSError | None:
            failing = number >= at if lasting else number == at
            return OSError(GONE, os.strerror(GONE)) if failing else None

        with Disk(fail).under(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problem = ""
            try:
                file = save(folder, 4, keep_last=2)
            except (CheckpointError, OSError) as error:
                problem = str(error)
        if problem:
            assert os.strerror(GONE) in problem
            raised += 1
        else:
            assert file in list_checkpoints(folder)
            returned += 1
        assert unreadable(folder) == []
        listed = list_checkpoints(folder)
        if problem:
            assert {file: file.read_bytes() for file in listed} == before
        else:
            assert listed[-1] == file
            assert listed[-2] in before
            assert listed[-2].read_bytes() == before[listed[-2]]
        if not lasting:
            assert strays(folder) == []
        shutil.rmtree(folder)
    print(f"{len(counting.log)} operations: {raised} raised, {returned} had saved")
    assert raised >= 5
    assert returned >= 2


def test_a_folder_that_can_not_be_listed_is_not_an_empty_one(tmp_path: Path) -> None:
    """Else a resume would start anew, and delete."""
    save(tmp_path, 1)
    with Disk(always("list", GONE)).under(tmp_path):
        with pytest.raises(OSError, match="Errno 107"):
            list_checkpoints(tmp_path)
        with pytest.raises(OSError, match="Errno 107"):
            load_checkpoint(tmp_path, model=MODEL)


def test_a_file_that_can_not_be_read_now_is_passed_over_and_kept(
    tmp_path: Path,
) -> None:
    for epoch in (1, 2):
        save(tmp_path, epoch, keep_last=2)
    newest = list_checkpoints(tmp_path)[-1]

    real_open = Path.open

    def opened(path: Path, *args: object, **kwargs: object) -> object:
        if path == newest:
            raise OSError(IO_ERROR, os.strerror(IO_ERROR))
        return real_open(path, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.warns(UserWarning, match=newest.name):
            assert load_checkpoint(tmp_path, model=MODEL)["epoch"] == 1
        for epoch in (3, 4, 5):
            save(tmp_path, epoch, keep_last=2)
    assert good_epochs(tmp_path) == [2, 4, 5]


def test_a_slow_disk_is_waited_for(tmp_path: Path) -> None:
    """Each operation takes 5 ms: slow, and nothing else."""
    import time

    def slow(*_: object) -> None:
        time.sleep(0.005)

    with Disk(slow).under(tmp_path):
        for epoch in range(1, 6):
            save(tmp_path, epoch)
        assert load_checkpoint(tmp_path, model=MODEL)["epoch"] == 5
    assert good_epochs(tmp_path) == [3, 4, 5]
    assert strays(tmp_path) == []


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may write anywhere; so not as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_case_14_read_only_folder() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "mine"
        old = save(folder, 1)
        Path(name).chmod(0o755)
        folder.chmod(0o555)
        with ordinary_user():
            assert os.access(folder, os.R_OK)
            assert good_epochs(folder) == [1]
            with pytest.raises(PermissionError, match=r"checkpoint_model_2"):
                save(folder, 2)
            with pytest.raises(PermissionError, match="new"):
                save(folder / "new", 2)
        folder.chmod(0o755)
        assert good_epochs(folder) == [1]
        assert strays(folder) == []
        assert fingerprint(read_checkpoint(old)["model_state_dict"]) == fingerprint(
            MODEL.state_dict()
        )


# --- Drive


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As on Colab, where Drive stands at `tmp_path/drive` and is not mounted."""
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    monkeypatch.setattr(storage, "DRIVE", tmp_path / "drive")
    return tmp_path / "drive"


@pytest.mark.parametrize("way", ["direct", "symlink", "relative"])
def test_case_12_drive_is_not_mounted(
    drive: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = drive / "MyDrive" / "run"
    if way == "symlink":
        (tmp_path / "link").symlink_to(drive / "MyDrive")
        folder = tmp_path / "link" / "run"
    if way == "relative":
        monkeypatch.chdir(tmp_path)
        folder = Path("drive/MyDrive/run")
    before = sorted(tmp_path.iterdir())
    file = folder / "checkpoint_model_1_none_none.pt"
    calls = [
        lambda: save(folder, 1),
        lambda: list_checkpoints(folder),
        lambda: load_checkpoint(folder, model=MODEL),
        lambda: load_checkpoint(file, model=MODEL),
        lambda: read_checkpoint(file),
    ]
    for call in calls:
        with pytest.raises(CheckpointError, match=r"not mounted.*checkpoint_dir"):
            call()
    assert sorted(tmp_path.iterdir()) == before, "something was made"


def test_case_12_mounted_drive_and_other_folders_are_used(
    drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "content", 1)  # a folder of Colab's own disk
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == drive)
    save(drive / "MyDrive" / "run", 1)
    assert good_epochs(drive / "MyDrive" / "run") == [1]
    monkeypatch.undo()
    assert good_epochs(drive / "MyDrive" / "run") == [1]  # off Colab a plain folder


def test_case_13_the_drive_vanishes_between_two_saves(
    drive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errno 107: the mount point is no mount any more, or asking for it fails."""
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == drive)
    folder = drive / "run"
    save(folder, 1)

    def gone(path: object) -> bool:
        raise OSError(GONE, os.strerror(GONE))

    for answer in (gone, lambda path: False):
        monkeypatch.setattr(os.path, "ismount", answer)
        with pytest.raises(CheckpointError, match="not mounted"):
            save(folder, 2)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == drive)
    assert good_epochs(folder) == [1]


def test_case_46_flush_off_colab(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    storage.flush_drive()
    assert "Not on Colab" in capsys.readouterr().out


def test_a_run_over_a_drive_that_fails_now_and_then(tmp_path: Path) -> None:
    """Sixty epochs, one operation in 40 fails; the loop tries each save again."""
    import random

    draw, failures = random.Random(5), 0

    def fail(*_: object) -> OSError | None:
        return (
            OSError(IO_ERROR, os.strerror(IO_ERROR)) if draw.random() < 1 / 40 else None
        )

    model, kept = nn.Linear(3, 3), 0
    for epoch in range(1, 61):
        model.weight.data.fill_(epoch)
        while True:
            with Disk(fail).under(tmp_path), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    save_checkpoint(tmp_path, epoch=epoch, model=model, loss=1 / epoch)
                    break
                except (CheckpointError, OSError):
                    failures += 1
        assert unreadable(tmp_path) == []
        assert good_epochs(tmp_path)[-1] == epoch
        kept = max(kept, len(list_checkpoints(tmp_path)))
    print(f"{failures} saves failed and were tried again; at most {kept} files")
    assert failures >= 5
    assert load_checkpoint(tmp_path, model=model)["epoch"] == 60
    assert torch.equal(model.weight, torch.full((3, 3), 60.0))
    assert strays(tmp_path) == []
