"""Where checkpoints go: Google Drive on Colab, a folder of the course elsewhere."""

import os
import re
from pathlib import Path

COURSE = Path(__file__).resolve().parent.parent
DRIVE = Path("/content/drive")  # where Colab mounts Google Drive
VARIABLE = "COURSE_CHECKPOINTS"


class StorageError(RuntimeError):
    """The folder for checkpoints can't be used; the message says what to do."""


def on_colab() -> bool:
    """Whether this process runs on a Colab machine: a notebook or what it started."""
    return "COLAB_RELEASE_TAG" in os.environ


def checkpoint_dir(lesson: str) -> Path:
    """The folder for a lesson's checkpoints, made if needed: `<folder>/<lesson>`.

    `<folder>` is `$COURSE_CHECKPOINTS` where that variable is set; else on Colab
    `MyDrive/pytorch-models-checkpoints`, after mounting Drive; else the course's own
    `checkpoints`. Raises ValueError where `lesson` is not a plain folder name, and
    StorageError where Drive is not mounted or the folder can't be written to.
    """
    if not re.fullmatch(r"\w[\w.-]*", lesson):
        raise ValueError(f"a lesson's name is one folder name, not {lesson!r}")
    if override := os.environ.get(VARIABLE):
        folder = Path(override).expanduser().absolute() / lesson
    elif on_colab():
        folder = DRIVE / "MyDrive" / "pytorch-models-checkpoints" / lesson
    else:
        folder = COURSE / "checkpoints" / lesson
    # A folder made below an unmounted /content/drive would look like Drive, vanish with
    # the session, and make the next mount fail. (resolve: links lead there, too)
    if folder.resolve().is_relative_to(DRIVE.resolve()) and not os.path.ismount(DRIVE):
        _mount(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("it is read-only")
    except OSError as error:
        raise StorageError(
            f"{folder} can't be used ({error}). Name another folder in {VARIABLE}."
        ) from error
    return folder


def flush_drive() -> None:
    """Wait until Drive has all that was written, and unmount it; off Colab, say so.

    `checkpoint_dir` mounts Drive again. Raises StorageError where Drive's client did
    not finish: files may be missing in Drive.
    """
    if not on_colab():
        print("Not on Colab: files are on this machine's disk, nothing to flush.")
        return
    try:
        from google.colab import drive

        drive.flush_and_unmount()
    except Exception as error:
        raise StorageError(
            f"Drive did not take everything ({error!r}). Leave this session open, look "
            "at drive.google.com for the newest files, and call flush_drive() again."
        ) from error


def _mount(folder: Path) -> None:
    try:
        from google.colab import drive

        print(
            f"Checkpoints go to your Google Drive, into {folder}. Colab asks for "
            "access to all of your Drive; the course uses that folder alone."
        )
        drive.mount(str(DRIVE))
        if not os.path.ismount(DRIVE):
            raise OSError(f"it is not at {DRIVE}")
    except Exception as error:
        raise StorageError(
            f"Google Drive was not mounted: {error!r}. Run this cell again, on Colab "
            f"(files in {DRIVE} must be moved away first). To go on without Drive, "
            "name another folder; Colab deletes it when the session ends:\n"
            f'    import os; os.environ["{VARIABLE}"] = "/content/checkpoints"'
        ) from error
