"""Lesson 03: saving and loading, with its deeper lessons on files and fast loading."""

import copy
import inspect
import os
import pickle
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from exercises import N_, Exercise, Wrong, choice, define
from helpers.compare import max_difference


class DigitsNet(nn.Module):
    """The network that the notebooks show: linear layers, BatchNorm, strong dropout.

    Input (B, 3, 32, 32), output (B, num_classes): logits.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * 32 * 32, 128)
        self.norm = nn.BatchNorm1d(128)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(128, num_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the head sees, before dropout: (B, 3, 32, 32) -> (B, 128)."""
        return self.norm(self.hidden(x.flatten(1))).relu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.features(x)))


_tag = None  # where tensors that are saved now say that they live


def _location(storage: Any) -> str | None:
    return _tag


# Asked before PyTorch's own taggers; None leaves the answer to them.
torch.serialization.register_package(0, _location, lambda storage, location: None)


def write_file_from_gpu(obj: Any, path: str | os.PathLike) -> None:
    """Save as a machine with many GPUs does: each tensor says that it lives on one.

    It names a GPU that this machine does not have: "cuda:7", or a higher number where
    there are more than seven.
    """
    global _tag
    _tag = f"cuda:{max(7, torch.cuda.device_count())}"
    try:
        torch.save(obj, path)
    finally:
        _tag = None


QUIZZES = {
    "forgotten_eval": [
        choice(
            "Your trained model classifies nearly all new images correctly."
            " You load it, forget eval(), and predict two images at a time. What "
            "happens?",
            (
                "nothing: the weights are the same",
                False,
                "The weights are the same. But in training mode, "
                "dropout and BatchNorm compute different outputs.",
            ),
            (
                "a few predictions are wrong, because of dropout",
                False,
                "Dropout costs little here. Another layer uses your "
                "batch's statistics instead of those from training.",
            ),
            (
                "an error: the model is in the wrong mode",
                False,
                "PyTorch allows both modes. BatchNorm1d raises an "
                "error only for a batch of one image.",
            ),
            (
                "no error, but many predictions are wrong",
                True,
                "Yes. BatchNorm normalizes each pair with its own mean "
                "and variance, so every feature becomes about -1 or 1.",
            ),
        )
    ],
    "changed_forward": [
        choice(
            "torch.save(model, path) saved a model. Later, someone changes "
            "forward in its class. What does the loaded model compute?",
            (
                "what it computed when it was saved",
                False,
                "That would need the code, and the file contains none: "
                "only the name of the class and the model's attributes.",
            ),
            (
                "nothing: PyTorch notices the change and raises an error",
                False,
                "PyTorch does not compare the code. A renamed class "
                "would raise an error, because its name is in the file.",
            ),
            (
                "what the new forward computes, without a warning",
                True,
                "Yes: the old weights run in the new code.",
            ),
        )
    ],
    "mmap_alone": [
        choice(
            "You change one thing in the usual three lines: "
            "torch.load(path, mmap=True). How much peak memory does that save?",
            (
                "about half: the file is not read into memory",
                False,
                "torch.load does not read it. But load_state_dict then "
                "copies every tensor, and copying reads all of it.",
            ),
            (
                "almost none",
                True,
                "Yes: load_state_dict reads the whole file to copy it.",
            ),
            (
                "almost all of it",
                False,
                "That needs two more changes: build the model without "
                "random weights, and do not copy.",
            ),
        )
    ],
}


# What several checkers need


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


class _Gift:
    """An object whose pickle calls a function when it is loaded; a harmless one."""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return _run_gift, ("ran",)


_calls: list[str] = []


def _run_gift(word: str) -> None:
    _calls.append(word)


def _runs_code(read: Callable[[Path], Any], content: Mapping[str, Any]) -> bool:
    """Whether reading a file of this content with a gift in it runs the gift."""
    with _folder() as folder:
        torch.save({**content, "gift": _Gift()}, folder / "gift.pt")
        _calls.clear()
        # Right or wrong, it may raise: all that matters here is whether code ran.
        with suppress(Exception):
            read(folder / "gift.pt")
    return bool(_calls)


RUNS_CODE = N_(
    "Your function ran code that was hidden in the file. weights_only=False "
    "lets a pickle call any function. Keep the default, weights_only=True. "
    "Section 5."
)


@contextmanager
def _explained(*known: tuple[Any, ...]) -> Iterator[None]:
    """Turn a known error into Wrong: (in its message, the advice, its values).

    Everything else comes through as it is.
    """
    try:
        yield
    except (
        RuntimeError,
        ValueError,
        IndexError,
    ) as error:  # also one that the learner made of it
        for phrase, advice, *values in known:
            if phrase in f"{error} {error.__cause__}":
                raise Wrong(advice, *values) from error
        raise


NO_DEVICE = (
    "deserialize object on",
    N_(
        "The file was saved on a GPU that is not here, and torch.load tried to put "
        'the tensors back on it. Put them on the CPU: map_location="cpu". Section 3.'
    ),
)


def _is_digits_net(model: Any) -> bool:
    """By its name: the class is defined in the notebook, and here for the checks."""
    return isinstance(model, nn.Module) and type(model).__name__ == "DigitsNet"


def _seeded(seed: int, num_classes: int = 10) -> DigitsNet:
    """A network with random weights and running statistics, in eval mode."""
    torch.manual_seed(seed)
    model = DigitsNet(num_classes)
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model.eval()


def _text(function: Callable) -> str:
    """A solution's text, as a learner would write it."""
    return inspect.getsource(function).replace("def _solution_", "def ")


# Exercise 1: a loading function with three faults


def _check_load_model(load_model: Callable[[Path], nn.Module]) -> None:
    with _folder() as folder:
        for num_classes in (10, 3, 7):
            right, path = _seeded(num_classes, num_classes), folder / "model.pt"
            write_file_from_gpu(right.state_dict(), path)
            with _explained(
                NO_DEVICE,
                (
                    "size mismatch",
                    N_(
                        "A file with {} classes does not fit a network with another "
                        "number of classes. Read that number from the file: "
                        'state_dict["head.weight"].shape. Section 1.'
                    ),
                    num_classes,
                ),
            ):
                model = load_model(path)
            if isinstance(model, tuple):
                raise Wrong(
                    "You returned what load_state_dict returns: the keys that do not "
                    "match. It changes the model in place: return the model. Section 1."
                )
            if not _is_digits_net(model):
                raise Wrong(
                    "Expected a DigitsNet, found {}. Section 1.",
                    type(model).__name__,
                )
            if any(module.training for module in model.modules()):
                raise Wrong(
                    "The model is still in training mode, at least in part, which "
                    "makes its predictions worse. Call model.eval(), with the "
                    "parentheses, on the whole model. Section 2."
                )
            if model.head.weight.device.type != "cpu":
                raise Wrong("The model should be on the CPU. Section 3.")
            if max_difference(model.state_dict(), right.state_dict()) != 0:
                raise Wrong(
                    "The weights of your model are not those in the file. Do you "
                    "call load_state_dict on the model that you return? Section 1."
                )
    if _runs_code(load_model, DigitsNet().state_dict()):
        raise Wrong(RUNS_CODE)


def _start_load_model(path):
    model = DigitsNet(num_classes=10)
    model.load_state_dict(torch.load(path))
    return model


def _solution_load_model(path):
    state_dict = torch.load(path, map_location="cpu")
    model = DigitsNet(num_classes=len(state_dict["head.bias"]))
    model.load_state_dict(state_dict)
    return model.eval()


def _wrong_load_model(
    ending: Callable[[nn.Module], Any],
    num_classes: int | None = None,
    weights_only: bool = True,
) -> Callable[[Path], Any]:
    def load_model(path):
        state_dict = torch.load(path, map_location="cpu", weights_only=weights_only)
        model = DigitsNet(num_classes or len(state_dict["head.bias"]))
        keys = model.load_state_dict(state_dict)
        return ending(model) or keys

    return load_model


def _three_or_ten(path):
    state_dict = torch.load(path, map_location="cpu")
    model = DigitsNet(3 if len(state_dict["head.bias"]) == 3 else 10)
    model.load_state_dict(state_dict)
    return model.eval()


def _eval_not_called(model):
    model.eval  # noqa: B018
    return model


load_model = Exercise(
    _check_load_model,
    start=_start_load_model,
    hints=[
        "Three things can go wrong: the file's device, its number of classes, and "
        "the mode of the model that you return.",
        'map_location="cpu" for the first, model.eval() for the last.',
        "Load the state_dict first, and see how many outputs the head has: "
        'state_dict["head.bias"] has one number for each class. Then build the model.',
    ],
    solution=_solution_load_model,
    text=_text(_solution_load_model),
    wrong_answers=[
        (lambda path: _solution_load_model(path).train(), "still in training mode"),
        (_wrong_load_model(_eval_not_called), "with the parentheses"),
        (_wrong_load_model(lambda model: model.head.eval() and model), "in part"),
        (_wrong_load_model(nn.Module.eval, num_classes=10), "number of classes"),
        (_three_or_ten, "with 7 classes"),
        (_wrong_load_model(lambda model: None), "returned what load_state_dict"),
        (_wrong_load_model(nn.Module.eval, weights_only=False), "ran code"),
        (lambda path: DigitsNet(3 if "3" in path.name else 10).eval(), "not those"),
        (lambda path: torch.load(path), "not here"),
        (lambda path: torch.load(path, map_location="cpu"), "found OrderedDict"),
    ],
)


# Exercise 3: a cure from a forum


def _refusal(read: Callable[[Path], Any], path: Path) -> None:
    """Raise Wrong unless the file is refused by a ValueError that gives advice."""
    try:
        got = read(path)
    except ValueError as error:
        advice = str(error)
        if "weights_only" in advice:
            raise Wrong(
                "Your message mentions weights_only: many readers will switch it off. "
                "Don't repeat PyTorch's message, and don't tell users how to load the "
                "file. Say only what to ask the sender for. Section 5."
            ) from error
        if "statedict" not in advice.lower().replace("_", "").replace(" ", ""):
            raise Wrong(
                "The file is refused, but {!r} does not name what this function can "
                "load. Say what to send instead: the model's state_dict, saved with "
                "torch.save. Section 5.",
                advice,
            ) from error
    except pickle.UnpicklingError as error:
        raise Wrong(
            "PyTorch's own message reached the caller, and its first suggestion is "
            "weights_only=False. Raise a ValueError with better advice. Section 5."
        ) from error
    else:
        raise Wrong(
            "For a file that PyTorch refuses, your function returned {}, and the "
            "caller would go on with that. Raise a ValueError. Section 5.",
            type(got).__name__,
        )


def _check_read_weights(read_weights: Callable[[Path], Any]) -> None:
    allowed = torch.serialization.get_safe_globals()
    try:
        with _folder() as folder:
            right = _seeded(0)
            write_file_from_gpu(right.state_dict(), folder / "weights.pt")
            with _explained(NO_DEVICE):
                got = read_weights(folder / "weights.pt")
            if (
                not isinstance(got, Mapping)
                or max_difference(got, right.state_dict()) != 0
            ):
                raise Wrong("A state_dict should come back as it was saved. Section 1.")
            if _runs_code(read_weights, right.state_dict()):
                raise Wrong(RUNS_CODE)
            torch.save(right, folder / "whole.pt")
            _refusal(read_weights, folder / "whole.pt")
            try:
                read_weights(folder / "missing.pt")
            except FileNotFoundError:
                pass
            except ValueError as error:
                raise Wrong(
                    "For a file that is not there, your message is about whole models. "
                    "Catch only the error for a refused file: pickle.UnpicklingError."
                ) from error
            else:
                raise Wrong(
                    "A missing file should raise FileNotFoundError, which torch.load "
                    "does by itself. Your function returned without an error. "
                    "Exercise 3."
                )
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def _start_read_weights(path):
    try:
        return torch.load(path, map_location="cpu")
    except pickle.UnpicklingError:
        return torch.load(path, map_location="cpu", weights_only=False)


def _solution_read_weights(path):
    try:
        return torch.load(path, map_location="cpu")
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} contains more than weights. Ask for a file saved with "
            "torch.save(model.state_dict(), path)"
        ) from None


def _wrong_read_weights(
    caught: type[Exception], otherwise: Callable[[Path], Any]
) -> Callable[[Path], Any]:
    def read_weights(path):
        try:
            return torch.load(path, map_location="cpu")
        except caught:
            return otherwise(path)

    return read_weights


def _refuse_with(message: str) -> Callable[[Path], Any]:
    def refuse(path):
        raise ValueError(message)

    return refuse


def _load_if_there(path):
    return _solution_read_weights(path) if path.exists() else None


def _pass_the_message_on(path):
    try:
        return torch.load(path, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(f"send a state_dict. {error}") from error


def _take_the_weights(path):
    model = torch.load(path, map_location="cpu", weights_only=False)
    return model.state_dict()


def _allow_the_class(path):
    layers = [DigitsNet, nn.Linear, nn.BatchNorm1d, nn.Dropout]
    torch.serialization.add_safe_globals(layers)
    return torch.load(path, map_location="cpu")


read_weights = Exercise(
    _check_read_weights,
    start=_start_read_weights,
    hints=[
        "The second torch.load removes the protection of the first one.",
        "The try and the except are right. What should you do in the except block?",
        "raise ValueError(...) from None, with a message that says what to send "
        "instead: a file saved with torch.save(model.state_dict(), path). `from None` "
        "keeps PyTorch's message, with its weights_only=False, out of the traceback.",
    ],
    solution=_solution_read_weights,
    text=_text(_solution_read_weights),
    wrong_answers=[
        (
            lambda path: torch.load(path, map_location="cpu", weights_only=False),
            "ran code",
        ),
        (_wrong_read_weights(pickle.UnpicklingError, _take_the_weights), "ran code"),
        (_wrong_read_weights(pickle.UnpicklingError, lambda path: None), "NoneType"),
        (_wrong_read_weights(pickle.UnpicklingError, _allow_the_class), "DigitsNet"),
        (
            _wrong_read_weights(pickle.UnpicklingError, _refuse_with("bad file")),
            "what to send instead",
        ),
        (
            _wrong_read_weights(
                pickle.UnpicklingError,
                _refuse_with("load with weights_only=False and take the state_dict"),
            ),
            "will switch it off",
        ),
        (_pass_the_message_on, "will switch it off"),
        (_load_if_there, "returned without an error"),
        (
            _wrong_read_weights(Exception, _refuse_with("send a state_dict")),
            "not there",
        ),
        (lambda path: torch.load(path, map_location="cpu"), "own message"),
        (lambda path: torch.load(path), "not here"),
    ],
)


# Exercise 4: a safe save


class _Watch:
    """Looks at the files, while a save runs, at each call that matters."""

    def __init__(self, path: Path) -> None:
        self.path, self.old = path, path.read_bytes()
        self.synced: dict[int, int] = {}  # inode -> size when it was forced to disk
        self.renames: list[Wrong | None] = []  # what was wrong with each

    @contextmanager
    def watching(self) -> Iterator[None]:
        fsync = os.fsync

        def watched_fsync(file: Any) -> None:
            fsync(file)
            status = os.fstat(file if isinstance(file, int) else file.fileno())
            self.synced[status.st_ino] = status.st_size

        def watched(move: Callable) -> Callable:
            def moved(source: Any, target: Any, **options: Any) -> None:
                if Path(target).absolute() == self.path:
                    self.renames.append(self._fault(Path(source).absolute()))
                move(source, target, **options)

            return moved

        with (
            mock.patch("os.fsync", watched_fsync),
            mock.patch("os.rename", watched(os.rename)),
            mock.patch("os.replace", watched(os.replace)),
        ):
            yield

    def _fault(self, source: Path) -> Wrong | None:
        """What does not hold at the moment when `source` gets the target's name."""
        status = source.stat()
        size_then = self.synced.get(status.st_ino)
        if source.parent != self.path.parent:
            return Wrong(
                "The temporary file is in another folder ({}). "
                "Moving a file to another disk copies it, and a copy can stop halfway. "
                "Write it to the target's folder, path.parent. Section 7.",
                source.parent.name,
            )
        if not self.path.exists() or self.path.read_bytes() != self.old:
            return Wrong(
                "At the moment of the rename, the old file was gone. A process that is "
                "killed at this point leaves no file at all. Don't delete the old "
                "file: os.replace replaces it in one step. Section 7."
            )
        if size_then is None:
            return Wrong(
                "The file is renamed before it is on the disk: without os.fsync, its "
                "content may exist only in memory, and a power failure can leave an "
                "empty file. Call os.fsync(...), by this name, before os.replace. "
                "Section 7."
            )
        if size_then != status.st_size:
            return Wrong(
                "When os.fsync ran, the file had {:,} bytes; at the rename "
                "it has {:,}. The rest may exist only in memory: call "
                "torch.save and file.flush() first, then os.fsync. Section 7.",
                size_then,
                status.st_size,
            )
        return None


def _check_safe_save(safe_save: Callable[[Any, Path], None]) -> None:
    with _folder() as folder:
        path = folder.absolute() / "model.pt"
        old, new = _seeded(0).state_dict(), _seeded(1).state_dict()
        torch.save(old, path)
        _check_failing_save(safe_save, path)
        watch = _Watch(path)
        with watch.watching():
            safe_save(new, path)
        if max_difference(torch.load(path), new) != 0:
            raise Wrong(
                "After the save, model.pt does not contain the new state. Section 7."
            )
        if any(watch.renames):
            raise next(filter(None, watch.renames))
        if not watch.renames:
            raise Wrong(
                "The new file did not get its name by a rename. A copy takes time and "
                "can be interrupted; os.replace is a single step. (Call it as "
                "os.replace(...), so that this check sees it.) Section 7."
            )
        if extra := sorted(f.name for f in folder.iterdir() if f != path):
            raise Wrong(
                "A successful save left other files behind: {}. Section 7.",
                ", ".join(extra),
            )
        _check_first_save(safe_save, folder.absolute() / "first.pt", new)
        _check_interrupted_save(safe_save, path)


def _check_first_save(
    safe_save: Callable[[Any, Path], None], path: Path, state: Any
) -> None:
    """A save to a name that no file has yet."""
    try:
        safe_save(state, path)
    except FileNotFoundError as error:
        raise Wrong(
            "There was no old file yet, and your function needs one, so the first "
            "save of a training run fails. os.replace does not need one. Section 7."
        ) from error
    if not path.exists() or max_difference(torch.load(path), state) != 0:
        raise Wrong("When there was no old file, the new one was not saved. Section 7.")


class _Stop:
    """An object that presses the stop button while it is being saved."""

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def _check_interrupted_save(safe_save: Callable[[Any, Path], None], path: Path) -> None:
    """The stop button in the middle of a save: no leftover, the interrupt raised."""
    files = set(path.parent.iterdir())
    try:
        safe_save({"weights": torch.zeros(2), "stop": _Stop()}, path)
    except KeyboardInterrupt:
        pass
    else:
        raise Wrong(
            "Someone pressed the stop button during a save, and your function "
            "returned as if nothing had happened. Re-raise every exception. Section 7."
        )
    if extra := sorted(f.name for f in set(path.parent.iterdir()) - files):
        raise Wrong(
            "An interrupted save left {} behind. The stop button raises "
            "KeyboardInterrupt, which is not an Exception: catch BaseException. "
            "Section 7.",
            ", ".join(extra),
        )


def _check_failing_save(safe_save: Callable[[Any, Path], None], path: Path) -> None:
    """A save that fails halfway: the old file whole, no leftover, the error raised."""
    before = path.read_bytes()
    try:
        safe_save({**_seeded(2).state_dict(), "transform": lambda x: x}, path)
    except (pickle.PicklingError, AttributeError):
        raised = True  # what pickle says to a lambda
    except Exception as error:
        if isinstance(error.__context__, pickle.PicklingError | AttributeError):
            raise Wrong(
                "A save failed, and the caller got {} instead of the original "
                "error. After the clean-up, re-raise it: a bare `raise` in the "
                "except block. Section 7.",
                type(error).__name__,
            ) from error
        raise
    else:
        raised = False
    if not path.exists() or path.read_bytes() != before:
        raise Wrong(
            "We tried to save a lambda, which cannot be pickled, over a good file, and "
            "the good file is damaged. torch.save must write to a file with another "
            "name. Section 7."
        )
    if not raised:
        raise Wrong(
            "A save failed, and the caller got no error. After the clean-up, re-raise "
            "it: a bare `raise` in the except block. Section 7."
        )
    if extra := sorted(f.name for f in path.parent.iterdir() if f != path):
        raise Wrong(
            "A failed save left {} behind. On Drive, such files use up your "
            "storage. Delete the temporary file when the save fails. Section 7.",
            ", ".join(extra),
        )


def _solution_safe_save(state, path):
    temp = path.with_name(path.name + ".tmp")
    try:
        with open(temp, "wb") as file:  # noqa: PTH123
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)  # noqa: PTH105
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def _start_safe_save(state, path): ...


def _wrong_safe_save(
    *,
    folder: Callable[[Path], Path] = lambda path: path.parent,
    fsync: str = "after",
    move: Callable[[Path, Path], Any] = Path.replace,
    clean: bool = True,
    tell: bool = True,
) -> Callable[[Any, Path], None]:
    def safe_save(state, path):
        temp = folder(path) / "model.tmp"
        try:
            with temp.open("wb") as file:
                if fsync == "before":
                    os.fsync(file.fileno())
                torch.save(state, file)
                file.flush()
                if fsync == "after":
                    os.fsync(file.fileno())
            move(temp, path)
        except Exception:
            if clean:
                temp.unlink()
            if tell:
                raise

    return safe_save


def _elsewhere(path):
    return path.parent.parent


def _delete_then_rename(temp, path):
    path.unlink()
    temp.rename(path)


def _copy_then_delete(temp, path):
    shutil.copy(temp, path)
    temp.unlink()


def _need_an_old_file(state, path):
    backup = Path(shutil.copy(path, path.with_suffix(".bak")))
    try:
        _solution_safe_save(state, path)
    finally:
        backup.unlink()


def _another_error(state, path):
    try:
        _solution_safe_save(state, path)
    except Exception:
        raise RuntimeError("the save failed")  # noqa: B904


def _swallow_the_stop(state, path):
    with suppress(KeyboardInterrupt):
        _solution_safe_save(state, path)


def _sync_too_late(temp, path):
    temp.replace(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


safe_save = Exercise(
    _check_safe_save,
    start=_start_safe_save,
    hints=[
        "Three steps: write to a temporary file in the same folder; make sure that it "
        "is on the disk; rename it.",
        'temp = path.with_name(path.name + ".tmp"), then open(temp, "wb"). torch.save '
        "also accepts an open file instead of a path.",
        "In the with block: torch.save(state, file), file.flush(), "
        "os.fsync(file.fileno()). After it: os.replace(temp, path).",
        "Put all of it into a try block. In `except BaseException:`, delete temp with "
        "temp.unlink(missing_ok=True), then `raise`.",
    ],
    solution=_solution_safe_save,
    text=_text(_solution_safe_save)
    .replace("  # noqa: PTH123", "")
    .replace("  # noqa: PTH105", ""),
    wrong_answers=[
        (torch.save, "is damaged"),
        (_wrong_safe_save(folder=_elsewhere), "in another folder"),
        (_wrong_safe_save(folder=_elsewhere, move=shutil.move), "in another folder"),
        (_wrong_safe_save(move=_copy_then_delete), "by a rename"),
        (_wrong_safe_save(move=_delete_then_rename), "was gone"),
        (_wrong_safe_save(move=lambda temp, path: None), "does not contain the new"),
        (_wrong_safe_save(fsync=""), "before it is on the disk"),
        (
            _wrong_safe_save(fsync="", move=_sync_too_late),
            "is renamed before",
        ),
        (_wrong_safe_save(fsync="before"), "had 0 bytes"),
        (_wrong_safe_save(clean=False), "left model.tmp behind"),
        (_wrong_safe_save(tell=False), "got no error"),
        (_another_error, "got RuntimeError instead"),
        (_wrong_safe_save(), "catch BaseException"),
        (_swallow_the_stop, "as if nothing had happened"),
        (_need_an_old_file, "no old file yet"),
    ],
)


# Exercise 2: use a model from its file alone


def _file_for_use(path: Path, names: list[str], count: int) -> torch.Tensor:
    """Write a file as in section 4; returns `count` images (count, 3, 32, 32), in 0..1.

    Image number i is of class i, counted round and round: the head is solved for so
    that it is certain of that, given the right mode and the right preprocessing.
    """
    model, mean, std = _seeded(len(names), len(names)), 0.3, 0.25
    images = torch.rand(count, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.no_grad():
        features = model.features((images - mean) / std)
        wanted = nn.functional.one_hot(torch.arange(count) % len(names), len(names))
        weight = (torch.linalg.pinv(features) @ wanted.float()).T
        model.head.weight.copy_(weight)
        model.head.bias.zero_()
    saved = {"num_classes": len(names), "class_names": names, "mean": mean, "std": std}
    write_file_from_gpu({**saved, "model_state_dict": model.state_dict()}, path)
    return images


def _check_predict(predict: Callable[[Path, torch.Tensor], list[str]]) -> None:
    modes, inputs = [], []

    def note(module: nn.Module, args: tuple) -> None:
        if _is_digits_net(module):
            modes.append(any(m.training for m in module.modules()))
            inputs.append(args[0].detach().cpu())

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        with _folder() as folder:
            for names, count in [
                (["zebra", "ape", "lion", "bear"], 16),
                (["no", "yes"], 1),
            ]:
                images = _file_for_use(folder / "for_use.pt", names, count)
                modes.clear()
                inputs.clear()
                with _explained(
                    NO_DEVICE,
                    (
                        "size mismatch",
                        N_(
                            "The number of classes is in the file: build the model "
                            'with saved["num_classes"]. Section 4.'
                        ),
                    ),
                    (
                        'state_dict: "num_classes"',
                        N_(
                            "The file contains more than the weights: load only "
                            'saved["model_state_dict"]. Section 4.'
                        ),
                    ),
                    (
                        "list index out of range",
                        N_(
                            "A number is too large for the list of names. argmax(0) "
                            "compares the images with each other; argmax(1) returns "
                            "one class for each image. Section 4."
                        ),
                    ),
                ):
                    passed = images.clone()
                    got = predict(folder / "for_use.pt", passed)
                _judge_predictions(got, names, images, modes, inputs)
                if not torch.equal(passed, images):
                    raise Wrong(
                        "Your function changed the caller's images in place (-=, /=, "
                        "sub_ or div_). Compute a new tensor. Exercise 2."
                    )
            content = torch.load(folder / "for_use.pt", map_location="cpu")
    finally:
        hook.remove()
    if _runs_code(lambda path: predict(path, images), content):
        raise Wrong(RUNS_CODE)


def _judge_predictions(
    got: Any,
    names: list[str],
    images: torch.Tensor,
    modes: list[bool],
    inputs: list[torch.Tensor],
) -> None:
    right = [names[i % len(names)] for i in range(len(images))]
    if any(modes):
        raise Wrong(
            "The model was in training mode: call eval() before you predict. Section 2."
        )
    # All of the call's inputs: it may go image by image, or in batches.
    seen = torch.cat(inputs) if inputs else None
    comparable = seen is not None and seen.shape == images.shape
    if comparable and torch.equal(seen, images):
        raise Wrong(
            "The images went into the model without preprocessing. It was trained on "
            "(image - mean) / std, and both numbers are in the file. Section 4."
        )
    if comparable and not torch.allclose(seen, (images - 0.3) / 0.25, atol=1e-4):
        raise Wrong(
            "The model's input is not (image - mean) / std with the file's two "
            "numbers. Don't compute them from this batch, and check the parentheses. "
            "Section 4."
        )
    if got == right:
        return
    if not isinstance(got, list) or len(got) != len(right):
        raise Wrong(
            "Expected a list with one name for each of the {} images, found {!r}. "
            "argmax(1) returns one class for each image. Return a list even for a "
            "single image. Section 4.",
            len(right),
            got,
        )
    if not all(isinstance(name, str) for name in got):
        raise Wrong(
            "Expected names such as {!r}, found {!r}: look the number of the class "
            'up in saved["class_names"]. Section 4.',
            right[0],
            got[0],
        )
    raise Wrong(
        'Expected {}, found {}. Output number i belongs to saved["class_names"][i]: '
        "keep the order of the file. Section 4.",
        right[:4],
        got[:4],
    )


def _start_predict(path, images): ...


def _solution_predict(path, images):
    saved = torch.load(path, map_location="cpu")
    model = DigitsNet(saved["num_classes"])
    model.load_state_dict(saved["model_state_dict"])
    model.eval()
    with torch.no_grad():
        logits = model((images - saved["mean"]) / saved["std"])
    return [saved["class_names"][number] for number in logits.argmax(1)]


def _wrong_predict(
    *,
    weights_only: bool = True,
    num_classes: int | None = None,
    ready: Callable[[nn.Module], Any] = nn.Module.eval,
    prepare: Callable = lambda images, saved: (images - saved["mean"]) / saved["std"],
    answer: Callable = lambda logits, names: [names[n] for n in logits.argmax(1)],
    weights: Callable = lambda saved: saved["model_state_dict"],
) -> Callable[[Path, torch.Tensor], Any]:
    @torch.no_grad()
    def predict(path, images):
        saved = torch.load(path, map_location="cpu", weights_only=weights_only)
        model = DigitsNet(num_classes or saved["num_classes"])
        model.load_state_dict(weights(saved))
        ready(model)
        return answer(model(prepare(images, saved)), saved["class_names"])

    return predict


def _sorted_names(logits, names):
    return [sorted(names)[number] for number in logits.argmax(1)]


predict = Exercise(
    _check_predict,
    start=_start_predict,
    hints=[
        "Everything that you need is in the file: look at its keys.",
        "Load on the CPU, build DigitsNet with the file's number of classes, load the "
        "weights, and call eval(). Then normalize the images as in training.",
        "logits.argmax(1) returns the index of the largest logit of each image, which "
        "is also the index of its name in class_names.",
        'Last line: return [saved["class_names"][number] for number in '
        "logits.argmax(1)]",
    ],
    solution=_solution_predict,
    text=_text(_solution_predict),
    wrong_answers=[
        (_wrong_predict(ready=nn.Module.train), "training mode"),
        (_wrong_predict(ready=lambda model: None), "training mode"),
        (_wrong_predict(prepare=lambda images, saved: images), "without pre"),
        (
            _wrong_predict(
                prepare=lambda images, saved: (images - images.mean()) / images.std()
            ),
            "the file's two numbers",
        ),
        (
            _wrong_predict(
                prepare=lambda images, saved: images / saved["std"] - saved["mean"]
            ),
            "the file's two numbers",
        ),
        (
            _wrong_predict(
                prepare=lambda images, saved: images - saved["mean"] / saved["std"]
            ),
            "check the parentheses",
        ),
        (
            _wrong_predict(
                prepare=lambda images, saved: images.sub_(saved["mean"]).div_(
                    saved["std"]
                )
            ),
            "in place",
        ),
        (_wrong_predict(num_classes=10), "number of classes"),
        (_wrong_predict(answer=lambda logits, names: logits.argmax(1)), "one name"),
        (
            _wrong_predict(answer=lambda logits, names: logits.argmax(1).tolist()),
            "look the number",
        ),
        (
            _wrong_predict(answer=lambda logits, names: names[logits[0].argmax()]),
            "one name for each",
        ),
        (_wrong_predict(answer=_sorted_names), "the order of the file"),
        (
            _wrong_predict(
                answer=lambda logits, names: [names[n] for n in logits.argmax(0)]
            ),
            "argmax(1) returns",
        ),
        (_wrong_predict(weights=lambda saved: saved), "more than the weights"),
        (_wrong_predict(weights_only=False), "ran code"),
        (lambda path, images: torch.load(path), "not here"),
    ],
)


# Deeper, inside a file: is this file whole?


def _damaged_files(path: Path) -> Iterator[tuple[str, str]]:
    """Damage the good file at `path` in one way after the other.

    Yields what was done, and what to say to someone who takes the file for good.
    """
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    weights = max(records.values(), key=len)
    flipped = bytearray(good)
    flipped[good.index(weights) + 3] ^= 64
    path.write_bytes(flipped)
    yield (
        N_("one bit of its weights is flipped"),
        N_(
            "torch.load does not check the checksums; ZipFile.testzip() does, but you "
            "have to look at what it returns. Section 3."
        ),
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            if content != weights:
                archive.writestr(name, content)
    yield (
        N_("one of its records is missing"),
        N_(
            "testzip() checks only the records that are there. torch.load notices a "
            "missing record: call both. Section 3."
        ),
    )
    for what, content in {
        N_("its second half is missing"): good[: len(good) // 2],
        N_("its last ten bytes are missing"): good[:-10],
        N_("it is empty"): b"",
        N_("it is a web page, as a failed download leaves it"): b"<html>Sorry</html>",
    }.items():
        path.write_bytes(content)
        yield what, N_("Turn every error of the two checks into ValueError. Section 3.")


def _check_load_verified(load_verified: Callable[[Path], Any]) -> None:
    state = _seeded(0).state_dict()
    with _folder() as folder:
        path = folder / "model.pt"
        write_file_from_gpu(state, path)
        with _explained(NO_DEVICE):
            got = load_verified(path)
        if not isinstance(got, Mapping) or max_difference(got, state) != 0:
            raise Wrong("An intact file's state_dict should come back as it was saved.")
        for what, advice in _damaged_files(path):
            _must_be_refused(load_verified, path, what, advice)
    if _runs_code(load_verified, state):
        raise Wrong("Lesson 03: {}", RUNS_CODE)


def _must_be_refused(
    load_verified: Callable[[Path], Any], path: Path, what: str, advice: str
) -> None:
    try:
        load_verified(path)
    except ValueError as error:
        if path.name not in str(error):
            raise Wrong(
                "The damaged file was refused with {!r}. Name the file in the "
                "message: a user may load many files.",
                str(error),
            ) from error
    except (
        RuntimeError,
        OSError,
        EOFError,
        pickle.PickleError,
        zipfile.BadZipFile,
    ) as error:
        raise Wrong(
            "The file is damaged ({}), and the caller got {}. Damage raises many "
            "kinds of exceptions: turn all of them into ValueError. Section 3.",
            what,
            type(error).__name__,
        ) from error
    else:
        raise Wrong(
            "Your function accepted a damaged file: {}. {}",
            what,
            advice,
        )


def _start_load_verified(path): ...


def _solution_load_verified(path):
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad:
            raise ValueError(f"its record {bad} is damaged")
        return torch.load(path, map_location="cpu")
    except Exception as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error


def _wrong_load_verified(
    *,
    test: bool = True,
    caught: type[Exception] | tuple[type[Exception], ...] = Exception,
    message: str = "{path}",
    read: Callable[[Path], Any] = lambda path: torch.load(path, map_location="cpu"),
) -> Callable[[Path], Any]:
    def load_verified(path):
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() and test:
                    raise ValueError("damaged")
            return read(path)
        except caught as error:
            raise ValueError(message.format(path=path)) from error

    return load_verified


def _no_zip_at_all(path):
    try:
        return torch.load(path, map_location="cpu")
    except Exception as error:
        raise ValueError(path) from error


def _checksums_alone(path):
    """The weights come from the zip archive itself: a missing record is not missed."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                raise ValueError(path)
    except zipfile.BadZipFile as error:
        raise ValueError(path) from error
    with suppress(RuntimeError):
        return torch.load(path, map_location="cpu")


load_verified = Exercise(
    _check_load_verified,
    start=_start_load_verified,
    hints=[
        "You need two checks: ZipFile(path).testzip() reads every record that is "
        "there, and torch.load needs every record to be there.",
        "testzip() raises no error for a bad record: it returns the record's name, or "
        "None. Raise the ValueError yourself.",
        "Put both into one try; `except Exception as error: raise "
        'ValueError(f"{path} cannot be loaded: {error}") from error`.',
    ],
    solution=_solution_load_verified,
    text=_text(_solution_load_verified),
    wrong_answers=[
        (_no_zip_at_all, "does not check the checksums"),
        (_wrong_load_verified(test=False), "look at what it returns"),
        (_checksums_alone, "missing record: call both"),
        (_wrong_load_verified(caught=(ValueError, RuntimeError)), "got BadZipFile"),
        (_wrong_load_verified(caught=(ValueError, OSError)), "many kinds"),
        (_wrong_load_verified(message="bad file"), "Name the file"),
        (_wrong_load_verified(read=torch.load), "not here"),
        (
            _wrong_load_verified(
                read=lambda path: torch.load(path, "cpu", weights_only=False)
            ),
            "ran code",
        ),
    ],
)


# Deeper, inside a file: views without what is around them


def _check_slim(slim: Callable[[dict], dict]) -> None:
    block = torch.rand(1_000_000)
    state = {
        "first": block[:10],
        "longer": block[:12],  # begins at the same place, and is another tensor
        "every_second": block[:20:2],  # the same place and shape, another stride
        "matrix": block[500:600].view(10, 10),
    }
    state["tied"] = state["matrix"].detach()  # as state_dict() gives a tied tensor
    before = {name: tensor.clone() for name, tensor in state.items()}
    slimmed = slim(state)
    if any(tensor.untyped_storage().nbytes() < 1_000_000 for tensor in state.values()):
        raise Wrong("The state that was passed in was changed. Build a new dict.")
    if not isinstance(slimmed, dict) or slimmed.keys() != before.keys():
        raise Wrong(
            "Expected a dict with the keys {}.",
            list(before),
        )
    for name, tensor in before.items():
        if not torch.equal(slimmed[name], tensor):
            raise Wrong(
                "{!r} should be {} with its old values, found {}. Several views can "
                "start at the same address: data_ptr() alone does not distinguish "
                "them. Compare shape and stride() too. Section 2.",
                name,
                tuple(tensor.shape),
                tuple(slimmed[name].shape),
            )
    with _folder() as folder:
        torch.save(slimmed, folder / "slim.pt")
        size = (folder / "slim.pt").stat().st_size
        again = torch.load(folder / "slim.pt")
    if size > 10_000:
        raise Wrong(
            "The file has {:,} bytes for 132 numbers: some tensor is still a view "
            "of the large block. clone() makes a copy with its own storage; "
            "contiguous() and deepcopy() may keep the large one. Section 2.",
            size,
        )
    if again["tied"].data_ptr() != again["matrix"].data_ptr():
        raise Wrong(
            "'matrix' and 'tied' were one tensor with two names; now they are two. "
            "Clone each tensor once, and use that clone for all its names. Section 2."
        )


def _start_slim(state): ...


def _solution_slim(state):
    clones, slimmed = {}, {}
    for name, tensor in state.items():
        place = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if place not in clones:
            clones[place] = tensor.clone()
        slimmed[name] = clones[place]
    return slimmed


def _wrong_slim(place: Callable[[torch.Tensor], Any]) -> Callable[[dict], dict]:
    def slim(state):
        clones = {}
        return {k: clones.setdefault(place(v), v.clone()) for k, v in state.items()}

    return slim


def _slim_in_place(state):
    for name, tensor in list(state.items()):
        state[name] = tensor.clone()
    return state


slim = Exercise(
    _check_slim,
    start=_start_slim,
    hints=[
        "tensor.clone() has its own storage. What goes wrong if you clone every entry?",
        "Tied names must share one clone. What is the same for two names of one "
        "tensor, but different for two views?",
        "Keep the clones in a dict with the key (tensor.data_ptr(), tensor.shape, "
        "tensor.stride(), tensor.dtype).",
    ],
    solution=_solution_slim,
    text=_text(_solution_slim),
    wrong_answers=[
        (dict, "bytes for 132 numbers"),
        (copy.deepcopy, "bytes for 132 numbers"),
        (lambda state: {k: v.contiguous() for k, v in state.items()}, "bytes for 132"),
        (lambda state: {k: v.clone() for k, v in state.items()}, "now they are two"),
        (_wrong_slim(id), "now they are two"),
        (_wrong_slim(torch.Tensor.data_ptr), "data_ptr() alone"),
        (_wrong_slim(lambda t: (t.data_ptr(), t.shape)), "data_ptr() alone"),
        (_wrong_slim(lambda t: t.untyped_storage().data_ptr()), "data_ptr() alone"),
        (_slim_in_place, "was changed"),
    ],
)


# Deeper, fast loading: no random numbers, no copy


class _Work(TorchDispatchMode):
    """Counts the numbers drawn and copied in memory; on meta there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = self.copied = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if isinstance(args[0] if args else None, torch.Tensor):
            count = 0 if args[0].is_meta else args[0].numel()
            if name in ("uniform_", "normal_", "kaiming_uniform_"):
                self.drawn += count
            elif name in ("copy_", "clone"):
                self.copied += count
        return func(*args, **(kwargs or {}))


def _check_load_fast(load_fast: Callable[[Path], nn.Module]) -> None:
    with _folder() as folder:
        right, path = _seeded(0), folder / "model.pt"
        write_file_from_gpu(right.state_dict(), path)
        with _explained(NO_DEVICE), _Work() as work:
            model = load_fast(path)
        if not _is_digits_net(model):
            raise Wrong(
                "Expected a DigitsNet, found {}.",
                type(model).__name__,
            )
        state = model.state_dict()
        if any(tensor.is_meta for tensor in state.values()):
            raise Wrong(
                "The model is still on meta: its tensors have shapes but no values. "
                "Copying into them does nothing; assign=True replaces them with the "
                "file's tensors. Section 2."
            )
        if max_difference(state, right.state_dict()) != 0:
            raise Wrong("The model's weights are not those in the file. Section 2.")
        if work.drawn:
            raise Wrong(
                "{:,} random numbers were drawn, and then overwritten by the "
                'file\'s. Build the model under torch.device("meta"). Section 2.',
                work.drawn,
            )
        if work.copied:
            raise Wrong(
                "{:,} numbers were copied. load_state_dict(..., assign=True) takes "
                "the file's tensors as they are. Section 2.",
                work.copied,
            )
        if any(module.training for module in model.modules()):
            raise Wrong("The model is in training mode. Lesson 03, section 2.")
        before = state["head.weight"].clone()
        _zero_the_weights(path)
        if torch.equal(before, state["head.weight"]):
            raise Wrong(
                "The whole file was read into memory. With mmap=True, a tensor is "
                "read when it is used. Section 3."
            )


def _zero_the_weights(path: Path) -> None:
    """Overwrite the head's weights in the file, in place: a mapped tensor changes."""
    head = torch.load(path, map_location="cpu")["head.weight"].numpy().tobytes()
    start = path.read_bytes().index(head)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(len(head)))


def _start_load_fast(path):
    model = DigitsNet()
    model.load_state_dict(torch.load(path, map_location="cpu"))
    return model.eval()


def _solution_load_fast(path):
    with torch.device("meta"):
        model = DigitsNet()
    state_dict = torch.load(path, map_location="cpu", mmap=True)
    model.load_state_dict(state_dict, assign=True)
    return model.eval()


def _wrong_load_fast(
    *,
    device: str = "meta",
    mmap: bool = True,
    assign: bool = True,
    map_location: str | None = "cpu",
    empty: bool = False,
) -> Callable[[Path], nn.Module]:
    def load_fast(path):
        with torch.device(device):
            model = DigitsNet()
        if empty:
            model.to_empty(device="cpu")
        state_dict = torch.load(path, map_location=map_location, mmap=mmap)
        with warnings.catch_warnings(action="ignore"):
            model.load_state_dict(state_dict, assign=assign)
        return model.eval()

    return load_fast


load_fast = Exercise(
    _check_load_fast,
    start=_start_load_fast,
    hints=[
        "Three things are slow: drawing random numbers that are never used, reading "
        "the whole file, and copying it.",
        'Use with torch.device("meta"): for the first, and mmap=True for the second.',
        "Use load_state_dict(state_dict, assign=True) for the third: without it, a "
        "model on meta stays empty.",
    ],
    solution=_solution_load_fast,
    text=_text(_solution_load_fast),
    wrong_answers=[
        (_wrong_load_fast(device="cpu", assign=False), "random numbers were drawn"),
        (_wrong_load_fast(device="cpu"), "random numbers were drawn"),
        (_wrong_load_fast(assign=False), "still on meta"),
        (_wrong_load_fast(assign=False, empty=True), "numbers were copied"),
        (_wrong_load_fast(mmap=False), "read into memory"),
        (_wrong_load_fast(map_location=None), "not here"),
        (lambda path: _solution_load_fast(path).train(), "training mode"),
    ],
)

quiz = define(globals())
