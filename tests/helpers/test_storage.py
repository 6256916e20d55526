"""helpers.storage with a stand-in for google.colab: its signatures and its errors."""

import contextlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from checkpoint_support import mounted

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
        self.mounted, self.mounts, self.lies = False, 0, False
        self.failure: BaseException | None = None
        (cloud / "MyDrive").mkdir(parents=True)

    def mount(self, mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
        assert mountpoint == str(self.point)
        self.mounts += 1
        if self.failure:
            raise self.failure
        if self.point.exists():
            if any(self.point.iterdir()):
                raise ValueError("Mountpoint must not already contain files")
            self.point.rmdir()
        if not self.lies:
            self.cloud.rename(self.point)
            self.mounted = True
            print(f"Mounted at {mountpoint}")

    def flush_and_unmount(self, timeout_ms=24 * 60 * 60 * 1000):
        if self.failure:
            raise self.failure
        if self.mounted:
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
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-external_20260801")
    real = os.path.ismount
    monkeypatch.setattr(
        os.path,
        "ismount",
        lambda path: drive.mounted if Path(path) == drive.point else real(path),
    )
    return drive


# ---- away from Colab


def test_a_folder_of_the_course():
    folder = checkpoint_dir(LESSON)
    assert folder == storage.COURSE / "checkpoints" / LESSON
    (folder / "model.pt").write_text("kept")
    assert (checkpoint_dir(LESSON) / "model.pt").read_text() == "kept"
    assert not on_colab()


@pytest.mark.parametrize("name", ["with space/Übung", "here", "~/models", ""])
def test_the_variable_names_another_folder(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COURSE_CHECKPOINTS", name)
    folder = checkpoint_dir(LESSON)
    monkeypatch.chdir("/")  # a lesson that changes its folder still finds its files
    expected = tmp_path / name.replace("~", "home")
    assert folder == (expected if name else storage.COURSE / "checkpoints") / LESSON
    assert folder.is_dir()


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "/abs", ".hidden", "a b", "~"]
)
def test_a_lesson_is_one_plain_folder_name(name):
    with pytest.raises(ValueError, match="one folder name"):
        checkpoint_dir(name)
    assert not storage.COURSE.exists()


def test_flush_says_that_there_is_nothing_to_flush(capsys):
    flush_drive()
    assert "nothing to flush" in capsys.readouterr().out


def test_a_file_in_the_way(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        monkeypatch.setenv("COURSE_CHECKPOINTS", str(place))
        with pytest.raises(StorageError, match=r"can't be used.*COURSE_CHECKPOINTS"):
            checkpoint_dir(LESSON)
    assert (tmp_path / "file").read_text() == "mine"


@contextlib.contextmanager
def read_only(folder: Path):
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
    else:  # root writes in spite of chmod
        (folder / "old").rmdir()
        with mounted(folder):
            (folder / "old").mkdir()
            os.system(f"mount -o remount,ro '{folder}'")
            yield


@pytest.mark.parametrize("lesson", ["old", "new"])
def test_a_read_only_folder(monkeypatch, tmp_path, lesson):
    root = tmp_path / "locked"
    (root / "old").mkdir(parents=True)
    (root / "old").chmod(0o555)
    monkeypatch.setenv("COURSE_CHECKPOINTS", str(root))
    with read_only(root), pytest.raises(StorageError, match=r"[Rr]ead-only|denied"):
        checkpoint_dir(lesson)


# ---- on Colab


def test_drive_is_mounted_and_files_go_to_my_drive(drive, capsys):
    folder = checkpoint_dir(LESSON)
    assert folder == drive.point / "MyDrive" / "pytorch-models-checkpoints" / LESSON
    assert folder.is_dir()
    assert on_colab()
    printed = capsys.readouterr().out
    before = printed[: printed.index("Mounted at")]
    assert "access to all of your Drive" in before, "what access means, before asking"
    assert str(folder) in before
    assert checkpoint_dir(LESSON) == folder
    assert drive.mounts == 1
    assert capsys.readouterr().out == ""


def test_flush_unmounts_and_the_next_save_mounts_again(drive):
    (checkpoint_dir(LESSON) / "model.pt").write_text("kept")
    flush_drive()
    assert not drive.mounted
    assert (checkpoint_dir(LESSON) / "model.pt").read_text() == "kept"
    assert drive.mounts == 2


FAILURES = {
    "refused": MessageError("Error: credential propagation was unsuccessful"),
    "failed": ValueError("mount failed"),
    "not Colab's own machine": NotImplementedError("unsupported in this environment."),
    "no kernel": AttributeError("'NoneType' object has no attribute 'kernel'"),
    "without words": MessageError(),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_mount_that_fails(drive, case, monkeypatch, tmp_path):
    drive.failure = FAILURES[case]
    with pytest.raises(StorageError, match="not mounted") as caught:
        checkpoint_dir(LESSON)
    assert repr(drive.failure) in str(caught.value)
    assert caught.value.__cause__ is drive.failure
    assert not drive.point.exists(), "a folder there would break the next mount"
    # The advice works: to go on without Drive ...
    advice = str(caught.value).splitlines()[-1].strip()
    monkeypatch.setenv("COURSE_CHECKPOINTS", "")  # undone after the test
    exec(advice.replace("/content", str(tmp_path / "content")))
    assert checkpoint_dir(LESSON) == tmp_path / "content" / "checkpoints" / LESSON
    # ... or to try again
    monkeypatch.setenv("COURSE_CHECKPOINTS", "")
    drive.failure = None
    assert checkpoint_dir(LESSON).is_relative_to(drive.point)


@pytest.mark.parametrize("full", [False, True], ids=["nothing", "a full folder"])
def test_a_mount_that_mounts_nothing(drive, full):
    drive.lies = True
    if full:
        (drive.point / "mine").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"not mounted.* moved away first"):
        checkpoint_dir(LESSON)
    assert [*drive.point.rglob("*")] == [drive.point / "mine"] * full


def test_a_stopped_cell_is_not_a_storage_error(drive):
    drive.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        checkpoint_dir(LESSON)
    assert not drive.point.exists()


def test_drive_without_its_package(drive, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    for call in (flush_drive, lambda: checkpoint_dir(LESSON)):
        with pytest.raises(StorageError):
            call()
    assert not drive.point.exists()


@pytest.mark.parametrize("way", range(4))
@pytest.mark.parametrize("fails", [False, True], ids=["", "fails"])
def test_the_variable_names_a_folder_in_drive(drive, monkeypatch, tmp_path, way, fails):
    (tmp_path / "link").symlink_to(storage.DRIVE)
    places = [
        f"{storage.DRIVE}/MyDrive/mine",
        f"{storage.DRIVE}/MyDrive/../MyDrive/mine",
        f"{storage.DRIVE.parent}/x/../drive/MyDrive/mine",
        f"{tmp_path}/link/MyDrive/mine",
    ]
    monkeypatch.setenv("COURSE_CHECKPOINTS", places[way])
    if fails:
        drive.failure = FAILURES["refused"]
        with pytest.raises(StorageError, match="not mounted"):
            checkpoint_dir(LESSON)
        assert not drive.point.exists()
    else:
        folder = checkpoint_dir(LESSON)
        assert folder.samefile(drive.point / "MyDrive" / "mine" / LESSON)


def test_a_flush_that_fails(drive):
    checkpoint_dir(LESSON)
    drive.failure = ValueError("flush_and_unmount failed")
    with pytest.raises(StorageError, match="flush_and_unmount failed") as caught:
        flush_drive()
    assert "drive.google.com" in str(caught.value)


REAL_ISMOUNT = os.path.ismount


def test_a_real_mount(drive, monkeypatch):
    """A plain folder is no Drive; a file system is."""
    monkeypatch.setattr(os.path, "ismount", REAL_ISMOUNT)
    drive.point.mkdir()
    drive.lies = True
    with pytest.raises(StorageError):
        checkpoint_dir(LESSON)
    drive.point.mkdir(exist_ok=True)
    with mounted(drive.point):
        assert checkpoint_dir(LESSON).is_dir()
        assert drive.mounts == 1
    with pytest.raises(StorageError):
        checkpoint_dir(LESSON)
