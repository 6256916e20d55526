"""helpers.storage with a stand-in for google.colab: its signatures and its errors."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from helpers import storage
from helpers.storage import StorageError, checkpoint_dir, flush_drive, on_colab

LESSON = "04_checkpoints"


class MessageError(Exception):
    """As google.colab._message.MessageError: a refusal in the browser's dialog."""


class Drive(ModuleType):
    """google.colab.drive, and behind it a Drive whose files outlive each mount.

    `failure` is raised by the next calls; `lies` returns without mounting anything.
    """

    def __init__(self, point: Path, cloud: Path) -> None:
        super().__init__("google.colab.drive")
        self.point, self.cloud = point, cloud
        self.mounted, self.mounts, self.flushes = False, 0, 0
        self.failure: Exception | None = None
        self.lies = False
        (cloud / "MyDrive").mkdir(parents=True)

    def mount(self, mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
        assert mountpoint == str(self.point)
        self.mounts += 1
        if self.failure:
            raise self.failure
        if self.lies:
            return
        if self.mounted:
            print(f"Drive already mounted at {mountpoint}; to attempt to forcibly ...")
            return
        if self.point.exists():
            if any(self.point.iterdir()):
                raise ValueError("Mountpoint must not already contain files")
            self.point.rmdir()
        self.cloud.rename(self.point)
        self.mounted = True
        print(f"Mounted at {mountpoint}")

    def flush_and_unmount(self, timeout_ms=24 * 60 * 60 * 1000):
        self.flushes += 1
        if self.failure:
            raise self.failure
        if not self.mounted:
            print("Drive not mounted, so nothing to flush and unmount.")
            return
        self.point.rename(self.cloud)
        self.point.mkdir()
        self.mounted = False


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """A machine that is not Colab's: google.colab can't be imported there."""
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.delenv("COURSE_CHECKPOINTS", raising=False)
    monkeypatch.setitem(sys.modules, "google.colab", None)
    monkeypatch.setattr(storage, "COURSE", tmp_path / "course")
    monkeypatch.setattr(storage, "DRIVE", tmp_path / "content" / "drive")
    (tmp_path / "content").mkdir()


@pytest.fixture
def drive(monkeypatch, tmp_path):
    """A Colab machine with its Drive, not mounted yet."""
    drive = Drive(storage.DRIVE, tmp_path / "cloud")
    colab = ModuleType("google.colab")
    colab.drive = drive
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-external_20260801")
    real = os.path.ismount
    monkeypatch.setattr(
        os.path,
        "ismount",
        lambda path: drive.mounted if Path(path) == drive.point else real(path),
    )
    return drive


def below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*")) if folder.exists() else []


# ---- away from Colab


def test_a_folder_of_the_course():
    folder = checkpoint_dir(LESSON)
    assert folder == storage.COURSE / "checkpoints" / LESSON
    assert folder.is_dir()
    (folder / "model.pt").write_text("kept")
    assert (checkpoint_dir(LESSON) / "model.pt").read_text() == "kept"
    assert not on_colab()


def test_the_course_folder_is_the_one_with_the_helpers():
    code = "from helpers import storage; print(storage.COURSE)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert (Path(found) / "helpers" / "storage.py").samefile(storage.__file__)


def test_the_variable_names_another_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CHECKPOINTS", str(tmp_path / "a" / "b"))
    assert checkpoint_dir(LESSON) == tmp_path / "a" / "b" / LESSON
    assert (tmp_path / "a" / "b" / LESSON).is_dir()
    assert not storage.COURSE.exists()


def test_a_relative_folder_becomes_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_CHECKPOINTS", "here")
    folder = checkpoint_dir(LESSON)
    monkeypatch.chdir("/")  # a lesson that changes its folder still finds its files
    assert folder.is_dir()
    assert folder == tmp_path / "here" / LESSON


def test_the_variable_may_begin_with_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COURSE_CHECKPOINTS", "~/models")
    assert checkpoint_dir(LESSON) == tmp_path / "home" / "models" / LESSON


def test_the_home_of_nobody(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_CHECKPOINTS", "~no-such-person/models")
    with pytest.raises(StorageError, match=r"COURSE_CHECKPOINTS.*no-such-person"):
        checkpoint_dir(LESSON)
    assert below(tmp_path) == [tmp_path / "content"]


def test_an_empty_variable_is_as_none(monkeypatch):
    monkeypatch.setenv("COURSE_CHECKPOINTS", "")
    assert checkpoint_dir(LESSON) == storage.COURSE / "checkpoints" / LESSON


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/abs", "a/", ".hidden", "a b", "a\n", "~"]
)
def test_a_lesson_is_one_plain_folder_name(name):
    with pytest.raises(ValueError, match="one folder name"):
        checkpoint_dir(name)
    assert not storage.COURSE.exists()


@pytest.mark.parametrize("place", ["drive", "drive/MyDrive/x", "other/../drive/x"])
def test_drive_is_refused_where_there_is_none(monkeypatch, place):
    monkeypatch.setenv("COURSE_CHECKPOINTS", str(storage.DRIVE.parent / place))
    with pytest.raises(StorageError, match=r"not mounted.*COURSE_CHECKPOINTS"):
        checkpoint_dir(LESSON)
    assert not storage.DRIVE.exists()


def test_flush_says_that_there_is_nothing_to_flush(capsys):
    flush_drive()
    assert "nothing to flush" in capsys.readouterr().out


# ---- folders that can't be had


def test_a_file_in_the_way(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        monkeypatch.setenv("COURSE_CHECKPOINTS", str(place))
        with pytest.raises(StorageError, match=r"can't be made.*COURSE_CHECKPOINTS"):
            checkpoint_dir(LESSON)
    monkeypatch.setenv("COURSE_CHECKPOINTS", str(tmp_path))
    with pytest.raises(StorageError, match="can't be made"):
        checkpoint_dir("file")
    assert (tmp_path / "file").read_text() == "mine"


@contextlib.contextmanager
def tmpfs(folder: Path, *options: str):
    """A real file system at `folder`; needs root."""
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this machine has no mount command")
    if done.returncode:
        pytest.skip(f"no right to mount a tmpfs here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path):
    if os.geteuid():
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)
    else:  # root writes in spite of chmod
        with tmpfs(folder):
            (folder / "old_lesson").mkdir()
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            yield


@pytest.mark.parametrize("lesson", ["old_lesson", "new_lesson"])
def test_a_read_only_folder(monkeypatch, tmp_path, lesson):
    root = tmp_path / "locked"
    (root / "old_lesson").mkdir(parents=True)
    (root / "old_lesson").chmod(0o555)
    monkeypatch.setenv("COURSE_CHECKPOINTS", str(root))
    with (
        read_only(root),
        pytest.raises(StorageError, match=r"[Rr]ead-only|denied") as caught,
    ):
        checkpoint_dir(lesson)
    assert "COURSE_CHECKPOINTS" in str(caught.value)


# ---- on Colab


def test_drive_is_mounted_and_files_go_to_my_drive(drive, capsys):
    folder = checkpoint_dir(LESSON)
    assert folder == drive.point / "MyDrive" / "pytorch-models-checkpoints" / LESSON
    assert folder.is_dir()
    assert drive.mounts == 1
    assert on_colab()
    printed = capsys.readouterr().out
    asked = printed.index("asks for access to all of your Drive")
    assert asked < printed.index("Mounted at"), "what access means comes before asking"
    assert str(folder) in printed[: printed.index("Mounted at")]


def test_drive_that_is_mounted_is_not_mounted_again(drive, capsys):
    drive.mount(str(drive.point))
    assert checkpoint_dir(LESSON) == checkpoint_dir(LESSON)
    assert drive.mounts == 1
    assert "access" not in capsys.readouterr().out


def test_drive_unmounted_later_is_mounted_again(drive, capsys):
    (checkpoint_dir(LESSON) / "model.pt").write_text("kept")
    drive.flush_and_unmount()
    capsys.readouterr()
    folder = checkpoint_dir(LESSON)
    assert (folder / "model.pt").read_text() == "kept"
    assert drive.mounts == 2
    assert "asks for access" in capsys.readouterr().out


def test_a_client_that_died_is_mounted_again(drive, monkeypatch):
    def ismount(path):
        if not drive.mounted:
            raise OSError(107, "Transport endpoint is not connected")
        return True

    monkeypatch.setattr(os.path, "ismount", ismount)
    assert checkpoint_dir(LESSON).is_dir()
    assert drive.mounts == 1


FAILURES = {
    "refused": MessageError("Error: credential propagation was unsuccessful"),
    "failed": ValueError("mount failed"),
    "timeout": ValueError(
        "mount failed: timeout during initial read of root folder; for more info: "
        "https://research.google.com/colaboratory/faq.html#drive-timeout"
    ),
    "not Colab's own machine": NotImplementedError(
        "google.colab.drive is unsupported in this environment."
    ),
    "no kernel": AttributeError("'NoneType' object has no attribute 'kernel'"),
    "files": ValueError("Mountpoint must not already contain files"),
    "without words": MessageError(),
}
ADVICE = {"no kernel": "notebook's cell", "files": "Move away"}


@pytest.mark.parametrize("case", FAILURES)
def test_a_mount_that_fails(drive, case):
    drive.failure = FAILURES[case]
    with pytest.raises(StorageError) as caught:
        checkpoint_dir(LESSON)
    message = str(caught.value)
    reason = str(drive.failure).rstrip(".") or "MessageError"
    assert f"was not mounted: {reason}. " in message
    assert ADVICE.get(case, "Run the cell again") in message
    assert 'os.environ["COURSE_CHECKPOINTS"]' in message
    assert caught.value.__cause__ is drive.failure
    assert not drive.point.exists(), "a folder there would break the next mount"
    drive.failure = None
    assert checkpoint_dir(LESSON).is_dir()


def test_the_advice_after_a_failure_works(drive, monkeypatch, tmp_path):
    drive.failure = FAILURES["refused"]
    with pytest.raises(StorageError) as caught:
        checkpoint_dir(LESSON)
    advice = str(caught.value).splitlines()[-1].strip()
    monkeypatch.setenv("COURSE_CHECKPOINTS", "")  # undone after the test
    exec(advice.replace("/content", str(tmp_path / "content")))
    assert checkpoint_dir(LESSON) == tmp_path / "content" / "checkpoints" / LESSON
    assert drive.mounts == 1
    assert not drive.point.exists()


def test_a_stopped_cell_is_not_a_storage_error(drive):
    drive.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        checkpoint_dir(LESSON)
    assert not drive.point.exists()


def test_a_mount_that_mounts_nothing(drive):
    drive.lies = True
    with pytest.raises(StorageError, match="COURSE_CHECKPOINTS"):
        checkpoint_dir(LESSON)
    assert not drive.point.exists()


def test_a_mount_point_that_is_not_empty(drive):
    drive.point.mkdir()
    (drive.point / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="Move away") as caught:
        checkpoint_dir(LESSON)
    assert str(drive.point) in str(caught.value)
    assert below(drive.point) == [drive.point / "notes.txt"]


def test_a_colab_without_its_package(drive, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    with pytest.raises(StorageError, match="COURSE_CHECKPOINTS"):
        checkpoint_dir(LESSON)
    with pytest.raises(StorageError):
        flush_drive()


def test_the_variable_keeps_drive_out(drive, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COURSE_CHECKPOINTS", str(tmp_path / "content" / "checkpoints"))
    assert checkpoint_dir(LESSON) == tmp_path / "content" / "checkpoints" / LESSON
    assert drive.mounts == 0
    assert capsys.readouterr().out == ""


def test_an_empty_variable_on_colab(drive, monkeypatch):
    monkeypatch.setenv("COURSE_CHECKPOINTS", "")
    assert checkpoint_dir(LESSON).is_relative_to(drive.point / "MyDrive")


def in_drive(tmp_path: Path) -> list[str]:
    """Four ways to write a folder in Drive."""
    (tmp_path / "link").symlink_to(storage.DRIVE)
    return [
        f"{storage.DRIVE}/MyDrive/mine",
        f"{storage.DRIVE}/MyDrive/../MyDrive/mine",
        f"{storage.DRIVE.parent}/x/../drive/MyDrive/mine",
        f"{tmp_path}/link/MyDrive/mine",
    ]


@pytest.mark.parametrize("way", range(4))
def test_the_variable_names_a_folder_in_drive(
    drive, monkeypatch, tmp_path, way, capsys
):
    monkeypatch.setenv("COURSE_CHECKPOINTS", in_drive(tmp_path)[way])
    folder = checkpoint_dir(LESSON)
    assert drive.mounts == 1
    assert folder.samefile(drive.point / "MyDrive" / "mine" / LESSON)
    printed = capsys.readouterr().out
    assert f"into {folder}" in printed
    assert "pytorch-models-checkpoints" not in printed


@pytest.mark.parametrize("way", range(4))
def test_the_variable_names_a_folder_in_a_refused_drive(
    drive, monkeypatch, tmp_path, way
):
    monkeypatch.setenv("COURSE_CHECKPOINTS", in_drive(tmp_path)[way])
    drive.failure = FAILURES["refused"]
    with pytest.raises(StorageError, match="not mounted"):
        checkpoint_dir(LESSON)
    assert not drive.point.exists()


def test_a_lesson_whose_folder_would_be_the_mount_point(drive, monkeypatch):
    monkeypatch.setenv("COURSE_CHECKPOINTS", str(drive.point.parent))
    drive.failure = FAILURES["refused"]
    with pytest.raises(StorageError):
        checkpoint_dir(drive.point.name)
    assert not drive.point.exists()


def test_flush_unmounts_and_the_next_save_mounts_again(drive):
    folder = checkpoint_dir(LESSON)
    flush_drive()
    assert drive.flushes == 1
    assert not drive.mounted
    assert not folder.exists()
    assert checkpoint_dir(LESSON).is_dir()


def test_flush_with_nothing_mounted(drive, capsys):
    flush_drive()
    assert "Drive not mounted" in capsys.readouterr().out


def test_a_flush_that_fails(drive):
    checkpoint_dir(LESSON)
    drive.failure = ValueError("flush_and_unmount failed")
    with pytest.raises(StorageError, match="flush_and_unmount failed") as caught:
        flush_drive()
    assert "drive.google.com" in str(caught.value)
    assert caught.value.__cause__ is drive.failure


def test_a_real_mount(drive, monkeypatch):
    """os.path.ismount itself: a plain folder is no Drive, a file system there is."""
    monkeypatch.setattr(os.path, "ismount", REAL_ISMOUNT)
    drive.point.mkdir()
    drive.lies = True
    with pytest.raises(StorageError):
        checkpoint_dir(LESSON)
    assert below(drive.point) == []
    with tmpfs(drive.point):
        assert checkpoint_dir(LESSON).is_dir()
        assert drive.mounts == 1
    with pytest.raises(StorageError):
        checkpoint_dir(LESSON)


REAL_ISMOUNT = os.path.ismount
