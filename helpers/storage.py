"""Where checkpoints go: Google Drive on Colab, a folder of the course elsewhere."""

import os
import re
from pathlib import Path

COURSE = Path(__file__).resolve().parent.parent
DRIVE = Path("/content/drive")
DRIVE_FOLDER = "pytorch-models-checkpoints"  # in My Drive
VARIABLE = "COURSE_CHECKPOINTS"

ANOTHER_FOLDER = f"Name another folder in the variable {VARIABLE}."
WITHOUT_DRIVE = (
    "To go on without Drive, run this in a cell first, and know that Colab deletes "
    "the folder when the session ends:\n"
    f'    import os; os.environ["{VARIABLE}"] = "/content/checkpoints"'
)


class StorageError(RuntimeError):
    """The folder for checkpoints can't be had; the message says what to do."""


def on_colab() -> bool:
    """Whether this process runs on a Colab machine: a notebook or what it started."""
    return "COLAB_RELEASE_TAG" in os.environ


def checkpoint_dir(lesson: str) -> Path:
    """The lesson's folder for checkpoints, made if it is not there.

    In this order: `$COURSE_CHECKPOINTS/<lesson>` where that variable is set; on Colab
    `MyDrive/pytorch-models-checkpoints/<lesson>`, after mounting Drive; elsewhere
    `checkpoints/<lesson>` in the course's folder.

    Args:
        lesson: a plain folder name, such as "04_checkpoints".

    Raises:
        ValueError: `lesson` is not a plain folder name.
        StorageError: Drive was refused or can't be mounted; the folder can't be made.
    """
    if not re.fullmatch(r"\w[\w.-]*", lesson):
        raise ValueError(f"a lesson's name is one folder name, not {lesson!r}")
    if override := os.environ.get(VARIABLE):
        try:
            folder = Path(override).expanduser().absolute() / lesson
        except RuntimeError as error:  # "~someone", whose home is not known here
            raise StorageError(f"{VARIABLE} is {override!r}: {error}") from error
    elif on_colab():
        folder = DRIVE / "MyDrive" / DRIVE_FOLDER / lesson
    else:
        folder = COURSE / "checkpoints" / lesson
    if _awaits_drive(folder):
        _mount(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the folder {folder} can't be made ({error}). {ANOTHER_FOLDER}"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"the folder {folder} is read-only. {ANOTHER_FOLDER}")
    return folder


def check_mounted(path: str | Path) -> None:
    """Raise unless `path` can be used: it is not on Drive, or Drive is mounted.

    Raises:
        StorageError: `path` is on Drive, and Drive is not mounted. A folder made there
            now would be lost with the session.
    """
    if _awaits_drive(Path(path)):
        raise StorageError(
            f"{path} is on Google Drive, and Drive is not mounted at {DRIVE}. Run the "
            "cell that calls storage.checkpoint_dir(...) again: it mounts Drive."
        )


def flush_drive() -> None:
    """Hand everything written to Drive's client over to Drive, and unmount.

    Ask `checkpoint_dir` again before the next save: it mounts Drive anew. Off Colab
    there is nothing to do, and the function says so.

    Raises:
        StorageError: Drive's client did not finish; what it held may not be in Drive.
    """
    if not on_colab():
        print(
            "Not on Colab: files are on this machine's disk, there is nothing to flush."
        )
        return
    try:
        from google.colab import drive

        drive.flush_and_unmount()
    except Exception as error:
        raise StorageError(
            f"Drive did not take everything ({_reason(error)}). Leave this session "
            "open, look at drive.google.com for the newest files, and call "
            "flush_drive() again."
        ) from error


def _awaits_drive(folder: Path) -> bool:
    """Whether the folder is on Drive, and Drive is not mounted."""
    # resolve: "/content/x/../drive" and links lead there too.
    return folder.resolve().is_relative_to(DRIVE.resolve()) and not _is_mounted()


def _is_mounted() -> bool:
    """Whether Drive stands at DRIVE: a plain folder of that name is not Drive."""
    try:
        return os.path.ismount(DRIVE)
    except OSError:  # "Transport endpoint is not connected": the client has died
        return False


def _mount(folder: Path) -> None:
    """Mount Drive for `folder`, or raise a StorageError and make nothing below DRIVE.

    A folder made below an unmounted /content/drive would look like Drive, vanish with
    the session, and make the next mount fail.
    """
    if not on_colab():
        raise StorageError(
            f"{folder} is in Google Drive, which is not mounted. {ANOTHER_FOLDER}"
        )
    print(
        f"Checkpoints go to your Google Drive, into {folder}. Colab asks for access to "
        "all of your Drive; the course reads and writes that folder alone."
    )
    try:
        from google.colab import drive

        drive.mount(str(DRIVE))
    except Exception as error:  # of several kinds; a refusal's is Exception's own child
        reason = _reason(error)
        advice = "Run the cell again to be asked again."
        if "already contain files" in reason:
            advice = f"Move away the files that stand in {DRIVE}, then run it again."
        elif isinstance(error, AttributeError):  # there is no kernel to ask through
            advice = "Only a notebook's cell can ask for Drive: mount it there first."
        raise StorageError(
            f"Google Drive was not mounted: {reason}. {advice}\n{WITHOUT_DRIVE}"
        ) from error
    if not _is_mounted():
        raise StorageError(f"Google Drive is not at {DRIVE}.\n{WITHOUT_DRIVE}")


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
