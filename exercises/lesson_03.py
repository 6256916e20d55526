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

from exercises import Exercise, Wrong, define
from helpers.compare import max_difference


class DigitsNet(nn.Module):
    """The lesson's network: linear layers with BatchNorm and strong dropout.

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
        {
            "question": "Your trained model names nearly all new images correctly. You "
            "load it, forget eval(), and send it two images at a time. What happens?",
            "type": "multiple_choice",
            "answers": [
                {
                    "answer": "nothing: the weights are the same",
                    "correct": False,
                    "feedback": "The weights are. But in training mode dropout and "
                    "BatchNorm compute something else from them.",
                },
                {
                    "answer": "a few answers are wrong, because of dropout",
                    "correct": False,
                    "feedback": "Dropout costs little here. Another layer replaces "
                    "what it has learned by what it finds in your batch.",
                },
                {
                    "answer": "an error: the model is not ready for use",
                    "correct": False,
                    "feedback": "Both modes are legal. Only a batch of one image makes "
                    "BatchNorm1d raise an error; a pair does not.",
                },
                {
                    "answer": "there is no error, and many answers are wrong",
                    "correct": True,
                    "feedback": "Yes. BatchNorm normalises each pair by its own mean "
                    "and variance, and two images are a bad sample.",
                },
            ],
        }
    ],
    "changed_forward": [
        {
            "question": "torch.save(model, path) saved a model. Later somebody changes "
            "forward in the class. What does the model compute once it is loaded?",
            "type": "multiple_choice",
            "answers": [
                {
                    "answer": "what it computed when it was saved",
                    "correct": False,
                    "feedback": "That would need the code, and the file holds none: "
                    "just the name of the class, and the model's attributes.",
                },
                {
                    "answer": "nothing: PyTorch sees the change and raises an error",
                    "correct": False,
                    "feedback": "It compares no code, so it sees nothing. A renamed "
                    "class would be an error, because the name is in the file.",
                },
                {
                    "answer": "what the new forward says, without a warning",
                    "correct": True,
                    "feedback": "Yes: old weights in new code.",
                },
            ],
        }
    ],
    "mmap_alone": [
        {
            "question": "You change one thing in the usual three lines: "
            "torch.load(path, mmap=True). How much memory does that save at the peak?",
            "type": "multiple_choice",
            "answers": [
                {
                    "answer": "about half: the file is not read into memory",
                    "correct": False,
                    "feedback": "Not by torch.load. But load_state_dict then copies "
                    "every tensor, and to copy it must read it all.",
                },
                {
                    "answer": "nothing worth mentioning",
                    "correct": True,
                    "feedback": "Yes: load_state_dict reads it all to copy it.",
                },
                {
                    "answer": "nearly everything",
                    "correct": False,
                    "feedback": "That needs two more changes: no random weights to "
                    "begin with, and no copy.",
                },
            ],
        }
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


RUNS_CODE = (
    "Your function ran code that was hidden in the file. weights_only=False lets a "
    "pickle call any function; leave the default, weights_only=True. Section 5."
)


@contextmanager
def _explained(*known: tuple[str, str]) -> Iterator[None]:
    """Turn a known RuntimeError of PyTorch's into Wrong: (in its message, the advice).

    Everything else comes through as it is.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # also one that the learner made of it
        for phrase, advice in known:
            if phrase in f"{error} {error.__cause__}":
                raise Wrong(advice) from error
        raise


NO_DEVICE = (
    "deserialize object on",
    "The file was written on a GPU that is not here, and torch.load tried to put the "
    'tensors back there. Say where they go: map_location="cpu". Section 3.',
)


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
        for num_classes in (10, 3):
            right, path = _seeded(num_classes, num_classes), folder / "model.pt"
            write_file_from_gpu(right.state_dict(), path)
            with _explained(
                NO_DEVICE,
                (
                    "size mismatch",
                    f"A file with {num_classes} classes does not go into a network "
                    "with another number of classes. The file knows it: look at "
                    'state_dict["head.weight"].shape. Section 1.',
                ),
            ):
                model = load_model(path)
            if isinstance(model, tuple):
                raise Wrong(
                    "You returned what load_state_dict returns: the keys that did not "
                    "match. It changes the model in place; return the model. Section 1."
                )
            if not isinstance(model, DigitsNet):
                raise Wrong(
                    f"Expected a DigitsNet, found {type(model).__name__}. Section 1."
                )
            if any(module.training for module in model.modules()):
                raise Wrong(
                    "The model is still in training mode, at least in part: dropout "
                    "and BatchNorm will spoil its answers. Call model.eval(), with the "
                    "parentheses, on the whole model. Section 2."
                )
            if model.head.weight.device.type != "cpu":
                raise Wrong("The model should be on the CPU. Section 3.")
            if max_difference(model.state_dict(), right.state_dict()) != 0:
                raise Wrong(
                    "The weights of your model are not those in the file: was "
                    "load_state_dict called on the model that you return? Section 1."
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
        "First load the state_dict, then look how many outputs the head has: "
        'state_dict["head.bias"] holds one number a class. Then build the model.',
    ],
    solution=_solution_load_model,
    text=_text(_solution_load_model),
    wrong_answers=[
        (lambda path: _solution_load_model(path).train(), "still in training mode"),
        (_wrong_load_model(_eval_not_called), "with the parentheses"),
        (_wrong_load_model(lambda model: model.head.eval() and model), "in part"),
        (_wrong_load_model(nn.Module.eval, num_classes=10), "number of classes"),
        (_wrong_load_model(lambda model: None), "returned what load_state_dict"),
        (_wrong_load_model(nn.Module.eval, weights_only=False), "ran code"),
        (lambda path: DigitsNet(3 if "3" in path.name else 10).eval(), "not those"),
        (lambda path: torch.load(path), "not here"),
        (lambda path: torch.load(path, map_location="cpu"), "found OrderedDict"),
    ],
)


# Exercise 2: a cure from a forum


def _refusal(read: Callable[[Path], Any], path: Path) -> None:
    """Raise Wrong unless the file is refused by a ValueError that gives advice."""
    try:
        got = read(path)
    except ValueError as error:
        if "state_dict" not in str(error):
            raise Wrong(
                f"The file is refused, but with {str(error)!r} nobody knows what to "
                "do. Say what to send instead: the model's state_dict. Section 5."
            ) from error
    except pickle.UnpicklingError as error:
        raise Wrong(
            "PyTorch's own message reached the caller, and it names weights_only=False "
            "as the first way out. Raise a ValueError with better advice. Section 5."
        ) from error
    else:
        raise Wrong(
            f"For a file that is more than weights your function returned "
            f"{type(got).__name__}. The caller would go on with it. Raise a "
            "ValueError. Section 5."
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
                    "For a file that is not there you gave advice about whole models. "
                    "Catch the one error that means refused: pickle.UnpicklingError."
                ) from error
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
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than weights. Ask for a file made with "
            "torch.save(model.state_dict(), path)"
        ) from error


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
        "The second torch.load takes away the protection that the first one gave.",
        "The try and the except are right. What should stand in the except?",
        "raise ValueError(...) with a message that says what to send instead: a file "
        "made with torch.save(model.state_dict(), path).",
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
            _wrong_read_weights(Exception, _refuse_with("send a state_dict")),
            "not there",
        ),
        (lambda path: torch.load(path, map_location="cpu"), "own message"),
        (lambda path: torch.load(path), "not here"),
    ],
)


# Exercise 3: a safe save


class _Watch:
    """Looks at the files, while a save runs, at each call that matters."""

    def __init__(self, path: Path) -> None:
        self.path, self.old = path, path.read_bytes()
        self.synced: dict[int, int] = {}  # inode -> size when it was forced to disk
        self.renames: list[str] = []  # what was wrong with each, or ""

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

    def _fault(self, source: Path) -> str:
        """What does not hold at the moment when `source` gets the target's name."""
        status = source.stat()
        size_then = self.synced.get(status.st_ino)
        if source.parent != self.path.parent:
            return (
                f"The temporary file is in another folder ({source.parent.name}). From "
                "one disk to another, moving is copying, and a copy can be interrupted "
                "halfway. Write it beside the target: in path.parent. Section 7."
            )
        if not self.path.exists() or self.path.read_bytes() != self.old:
            return (
                "At the moment of the rename the old file was gone. A process that is "
                "killed there leaves no file at all. os.replace needs no deletion "
                "before it: it takes the old file's place in one step. Section 7."
            )
        if size_then is None:
            return (
                "The file is renamed before it is on the disk: without os.fsync its "
                "content may still be in memory, and after a power cut the new name "
                "stands for an empty file. Call os.fsync before os.replace. Section 7."
            )
        if size_then != status.st_size:
            return (
                f"When os.fsync ran, the file had {size_then:,} bytes; at the rename "
                f"it has {status.st_size:,}. What was written later may still be in "
                "memory: first torch.save and file.flush(), then os.fsync. Section 7."
            )
        return ""


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
            raise Wrong("After the save, model.pt does not hold the new state.")
        if any(watch.renames):
            raise Wrong(max(watch.renames))
        if not watch.renames:
            raise Wrong(
                "The new content did not get its name by a rename. Copying takes time, "
                "and can be interrupted; os.replace happens at once. (Call it as "
                "os.replace(...), so that this check sees it.) Section 7."
            )
        if extra := sorted(f.name for f in folder.iterdir() if f != path):
            raise Wrong(f"A good save left more than model.pt: {', '.join(extra)}.")


def _check_failing_save(safe_save: Callable[[Any, Path], None], path: Path) -> None:
    """A save that fails halfway: the old file whole, no leftover, the error raised."""
    before = path.read_bytes()
    try:
        safe_save({**_seeded(2).state_dict(), "transform": lambda x: x}, path)
    except (pickle.PicklingError, AttributeError):
        raised = True  # what pickle says to a lambda
    else:
        raised = False
    if not path.exists() or path.read_bytes() != before:
        raise Wrong(
            "We saved something that cannot be saved (it holds a lambda), over a good "
            "file, and the good file is damaged. torch.save must write to another "
            "name. Section 7."
        )
    if not raised:
        raise Wrong(
            "A save failed, and the caller never heard of it. After the clean-up, "
            "raise the error again: a bare `raise` in the except. Section 7."
        )
    if extra := sorted(f.name for f in path.parent.iterdir() if f != path):
        raise Wrong(
            f"A save that failed has left {', '.join(extra)} behind. On Drive such "
            "files fill the quota. Delete the temporary file when something goes "
            "wrong. Section 7."
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


def _sync_too_late(temp, path):
    temp.replace(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


safe_save = Exercise(
    _check_safe_save,
    start=_start_safe_save,
    hints=[
        "Three steps: write everything to a temporary name in the same folder; make "
        "sure that it is on the disk; rename.",
        'temp = path.with_name(path.name + ".tmp"), then open(temp, "wb"), and '
        "torch.save takes the open file instead of a path.",
        "In the with block: torch.save(state, file), file.flush(), "
        "os.fsync(file.fileno()). After it: os.replace(temp, path).",
        "Put all of it into a try. In `except BaseException:` delete temp with "
        "temp.unlink(missing_ok=True), and then `raise`.",
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
        (_wrong_safe_save(move=lambda temp, path: None), "does not hold the new"),
        (_wrong_safe_save(fsync=""), "before it is on the disk"),
        (
            _wrong_safe_save(fsync="", move=_sync_too_late),
            "is renamed before",
        ),
        (_wrong_safe_save(fsync="before"), "had 0 bytes"),
        (_wrong_safe_save(clean=False), "left model.tmp behind"),
        (_wrong_safe_save(tell=False), "never heard of it"),
    ],
)


# Exercise 4: use a model from its file alone


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
        if isinstance(module, DigitsNet):
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
                inputs.clear()
                with _explained(
                    NO_DEVICE,
                    (
                        "size mismatch",
                        "The number of classes is in the file: build the model with "
                        'saved["num_classes"]. Section 4.',
                    ),
                ):
                    got = predict(folder / "for_use.pt", images.clone())
                _judge_predictions(got, names, images, modes, inputs)
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
            "The model answered in training mode: call eval() before you use it. "
            "Section 2."
        )
    if inputs and torch.equal(inputs[-1], images):
        raise Wrong(
            "The images went into the model as they came. It was trained on "
            "(image - mean) / std; the file holds both numbers. Section 4."
        )
    if inputs and not torch.allclose(inputs[-1], (images - 0.3) / 0.25, atol=1e-4):
        raise Wrong(
            "The images were normalised, but not with the file's mean and std. It is "
            "the training set's numbers that count, not this batch's. Section 4."
        )
    if got == right:
        return
    if not isinstance(got, list) or len(got) != len(right):
        raise Wrong(
            f"Expected a list with one name for each of the {len(right)} images, found "
            f"{got!r}. argmax(1) gives one class for each image; keep the list also "
            "for a single image. Section 4."
        )
    if not all(isinstance(name, str) for name in got):
        raise Wrong(
            f"Expected names such as {right[0]!r}, found {got[0]!r}: look the number "
            'up in saved["class_names"]. Section 4.'
        )
    raise Wrong(
        f"Expected {right[:4]}, found {got[:4]}. Output number i belongs to "
        'saved["class_names"][i]: keep the order of the file. Section 4.'
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
) -> Callable[[Path, torch.Tensor], Any]:
    @torch.no_grad()
    def predict(path, images):
        saved = torch.load(path, map_location="cpu", weights_only=weights_only)
        model = DigitsNet(num_classes or saved["num_classes"])
        model.load_state_dict(saved["model_state_dict"])
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
        "weights, eval(); then normalise as in training.",
        "The index of the largest logit of each image: logits.argmax(1). It is the "
        "position of the name in class_names.",
        'Last line: return [saved["class_names"][number] for number in '
        "logits.argmax(1)]",
    ],
    solution=_solution_predict,
    text=_text(_solution_predict),
    wrong_answers=[
        (_wrong_predict(ready=nn.Module.train), "training mode"),
        (_wrong_predict(ready=lambda model: None), "training mode"),
        (_wrong_predict(prepare=lambda images, saved: images), "as they came"),
        (
            _wrong_predict(
                prepare=lambda images, saved: (images - images.mean()) / images.std()
            ),
            "not with the file's",
        ),
        (
            _wrong_predict(
                prepare=lambda images, saved: images / saved["std"] - saved["mean"]
            ),
            "not with the file's",
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
        "one bit of its weights is flipped",
        "torch.load does not compare the checksums; ZipFile.testzip() does, and what "
        "it returns has to be looked at. Section 3.",
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            if content != weights:
                archive.writestr(name, content)
    yield (
        "one of its records is missing",
        "testzip() checks the records that are there, and does not miss one. "
        "torch.load does: call both. Section 3.",
    )
    for what, content in {
        "its second half is missing": good[: len(good) // 2],
        "its last ten bytes are missing": good[:-10],
        "it is empty": b"",
        "it is a web page, as a failed download leaves it": b"<html>Sorry</html>",
    }.items():
        path.write_bytes(content)
        yield what, "Section 3."


def _check_load_verified(load_verified: Callable[[Path], Any]) -> None:
    state = _seeded(0).state_dict()
    with _folder() as folder:
        path = folder / "model.pt"
        write_file_from_gpu(state, path)
        with _explained(NO_DEVICE):
            got = load_verified(path)
        if not isinstance(got, Mapping) or max_difference(got, state) != 0:
            raise Wrong("A whole file's state_dict should come back as it was saved.")
        for what, advice in _damaged_files(path):
            _must_be_refused(load_verified, path, what, advice)
    if _runs_code(load_verified, state):
        raise Wrong(RUNS_CODE.replace("Section 5", "Lesson 03, section 5"))


def _must_be_refused(
    load_verified: Callable[[Path], Any], path: Path, what: str, advice: str
) -> None:
    try:
        load_verified(path)
    except ValueError as error:
        if path.name not in str(error):
            raise Wrong(
                f"The damaged file was refused with {str(error)!r}. Name the file in "
                "the message: the user may have hundreds."
            ) from error
    except (RuntimeError, OSError, EOFError, pickle.PickleError) as error:
        raise Wrong(
            f"The file is damaged ({what}), and the caller got {type(error).__name__}. "
            "Damage comes as many kinds of exceptions; turn them all into ValueError. "
            "Section 3."
        ) from error
    except zipfile.BadZipFile as error:
        raise Wrong(
            f"The file is damaged ({what}), and the caller got BadZipFile. Damage "
            "comes as many kinds of exceptions; turn them all into ValueError. "
            "Section 3."
        ) from error
    else:
        raise Wrong(f"You took a damaged file for good: {what}. {advice}")


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
        "Two checks that complete each other: ZipFile(path).testzip() reads every "
        "record, torch.load wants every record.",
        "testzip() raises nothing for a bad record: it returns the record's name, or "
        "None. Raise the ValueError yourself.",
        "Put both into one try; `except Exception as error: raise "
        'ValueError(f"{path} cannot be loaded: {error}") from error`.',
    ],
    solution=_solution_load_verified,
    text=_text(_solution_load_verified),
    wrong_answers=[
        (_no_zip_at_all, "does not compare the checksums"),
        (_wrong_load_verified(test=False), "has to be looked at"),
        (_checksums_alone, "torch.load does: call both"),
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
        raise Wrong("The state that you were given was changed. Build a new dict.")
    if not isinstance(slimmed, dict) or slimmed.keys() != before.keys():
        raise Wrong(f"Expected a dict with the keys {list(before)}.")
    for name, tensor in before.items():
        if not torch.equal(slimmed[name], tensor):
            raise Wrong(
                f"{name!r} should be {tuple(tensor.shape)} with its old values, found "
                f"{tuple(slimmed[name].shape)}. Several views may begin at the same "
                "place in memory: data_ptr() alone does not tell them apart; shape "
                "and stride() do. Section 2."
            )
    with _folder() as folder:
        torch.save(slimmed, folder / "slim.pt")
        size = (folder / "slim.pt").stat().st_size
        again = torch.load(folder / "slim.pt")
    if size > 10_000:
        raise Wrong(
            f"The file has {size:,} bytes for 252 numbers: some tensor still looks "
            "at the large block. A copy with a storage of its own comes from clone(); "
            "contiguous() and deepcopy() may keep the old one. Section 2."
        )
    if again["tied"].data_ptr() != again["matrix"].data_ptr():
        raise Wrong(
            "'matrix' and 'tied' were one tensor under two names; now they are two. "
            "Clone once for each place in memory, and use that clone for all its "
            "names. Section 2."
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
        "tensor.clone() has a storage of its own. Where does it lose something?",
        "Tied names must share one clone. What is the same for two names of one "
        "tensor, and different for two views?",
        "A dict of clones, with the key (tensor.data_ptr(), tensor.shape, "
        "tensor.stride(), tensor.dtype).",
    ],
    solution=_solution_slim,
    text=_text(_solution_slim),
    wrong_answers=[
        (dict, "bytes for 252 numbers"),
        (copy.deepcopy, "bytes for 252 numbers"),
        (lambda state: {k: v.contiguous() for k, v in state.items()}, "bytes for 252"),
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
        if not isinstance(model, DigitsNet):
            raise Wrong(f"Expected a DigitsNet, found {type(model).__name__}.")
        state = model.state_dict()
        if any(tensor.is_meta for tensor in state.values()):
            raise Wrong(
                "The model is still on meta: its tensors have shapes and no numbers. "
                "Copying into them does nothing; assign=True puts the file's tensors "
                "in their place. Section 2."
            )
        if max_difference(state, right.state_dict()) != 0:
            raise Wrong("The model's weights are not those in the file. Section 2.")
        if work.drawn:
            raise Wrong(
                f"{work.drawn:,} random numbers were drawn, and then replaced by the "
                'file\'s. Build the model under torch.device("meta"). Section 2.'
            )
        if work.copied:
            raise Wrong(
                f"{work.copied:,} numbers were copied. load_state_dict(..., "
                "assign=True) takes the file's tensors as they are. Section 2."
            )
        if any(module.training for module in model.modules()):
            raise Wrong("The model is in training mode. Lesson 03, section 2.")
        before = state["head.weight"].clone()
        _zero_the_weights(path)
        if torch.equal(before, state["head.weight"]):
            raise Wrong(
                "All of the file was read into memory. With mmap=True torch.load "
                "reads a tensor when it is used. Section 3."
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
        "Three things are slow: random numbers that nobody needs, reading the whole "
        "file, and copying it.",
        'with torch.device("meta"): for the first, mmap=True for the second.',
        "load_state_dict(state_dict, assign=True) for the third: without it, a model "
        "on meta stays empty.",
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
