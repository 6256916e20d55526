"""Lesson 04: checkpoints."""

import copy
import math
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from exercises import N_, Exercise, Wrong, define
from helpers.checkpoint import list_checkpoints, read_checkpoint, save_checkpoint

QUIZZES = {
    "same_run": [
        {
            "question": "The resumed run trains epochs 8 to 10. How do its weights "
            "compare with those of the run that was never interrupted?",
            "type": "multiple_choice",
            "answers": [
                {
                    "answer": "They are equal: model and optimizer were restored.",
                    "correct": False,
                    "feedback": "A training run has more state than these two: what "
                    "decides the order of the images, for example?",
                },
                {
                    "answer": "They differ by rounding, in the last digits.",
                    "correct": False,
                    "feedback": "On a CPU the same operations on the same numbers give "
                    "the same bits. If anything differs, the operations did.",
                },
                {
                    "answer": "They differ clearly: it is another run.",
                    "correct": True,
                    "feedback": "Yes. Model and optimizer go on, but the scheduler's "
                    "count, the order of the images and Dropout's draws start again.",
                },
            ],
        }
    ],
    "half_written": [
        {
            "question": "A program overwrites model.pt with torch.save and is killed "
            "half-way. What does model.pt hold?",
            "type": "multiple_choice",
            "answers": [
                {
                    "answer": "the previous weights: the save did not finish",
                    "correct": False,
                    "feedback": "Opening a file for writing empties it at once. The "
                    "previous weights are gone before the first new byte is written.",
                },
                {
                    "answer": "the new weights, the rest filled with zeros",
                    "correct": False,
                    "feedback": "Nothing fills up the rest. The index of the archive "
                    "comes last, so without it nothing in the file can be found.",
                },
                {
                    "answer": "part of the new weights: the file cannot be loaded",
                    "correct": True,
                    "feedback": "Yes, and the previous weights are gone as well.",
                },
            ],
        }
    ],
}


# --- newest -------------------------------------------------------------------------


def _check_newest(newest):
    cases = {
        "checkpoint_model_12_0.5000_0.8000.pt": [
            "checkpoint_model_12_0.5000_0.8000.pt",
            "checkpoint_model_5_0.7000_0.7500.pt",
            "checkpoint_model_11_0.4000_0.9000.pt",
            "checkpoint_model_3_2.3000_0.2000.pt",
        ],
        "checkpoint_model_100_0.1000_0.9000.pt": [
            "checkpoint_model_99_0.3000_0.9000.pt",
            "checkpoint_model_100_0.1000_0.9000.pt",
        ],
        "checkpoint_model_10_nan_0.1000.pt": [
            "checkpoint_model_9_0.2114_0.9370.pt",
            "checkpoint_model_10_nan_0.1000.pt",
        ],
    }
    for expected, names in cases.items():
        for order in (names, names[::-1]):
            files = [Path("run_7", name) for name in order]
            try:
                found = newest([*files])
            except FileNotFoundError:
                raise Wrong(
                    "These files do not exist: only their names are given. A file's "
                    "time is no epoch, since a copy may get a new time. Read the epoch "
                    "from the name. Section 1."
                ) from None
            if found == Path("run_7", expected) or found == f"run_7/{expected}":
                continue
            why = ""
            if not isinstance(found, str | Path):
                why = N_("Return the file itself. ")
            elif Path(found).name == max(names):
                why = N_("Names are compared letter by letter: '9' comes after '10'. ")
            elif len(names) == 4 and "0.4000" in str(found):
                why = N_("That is the lowest loss; newest is the highest epoch. ")
            elif found == files[-1] or found == files[0]:
                why = N_("A folder lists its files in any order. ")
            raise Wrong(
                "From {} you chose {!r}, expected was {!r}. {}Compare the epochs as "
                "integers. Section 1.",
                order,
                found,
                expected,
                why,
            )


def _newest(files):
    return max(files, key=lambda file: int(file.name.split("_")[2]))


newest = Exercise(
    _check_newest,
    start=lambda files: sorted(files)[-1],
    hints=[
        'What does "checkpoint_model_10_0.2_0.9.pt".split("_") give?',
        "max(files, key=...) takes a function that gives the number to compare.",
        "The key: int(file.name.split('_')[2])",
    ],
    solution=_newest,
    text="""
def newest(files):
    return max(files, key=lambda file: int(file.name.split("_")[2]))
""",
    wrong_answers=[
        (max, "letter by letter"),
        (lambda files: files[-1], "in any order"),
        (lambda files: max(files, key=lambda f: (len(f.name), f.name)), "integers"),
        (
            lambda files: min(files, key=lambda f: float(f.name.split("_")[3])),
            "lowest loss",
        ),
        (lambda files: max(files, key=lambda f: f.stat().st_mtime), "time is no epoch"),
        (
            lambda files: max(int(f.name.split("_")[2]) for f in files),
            "Return the file itself",
        ),
    ],
)


# --- resume -------------------------------------------------------------------------


def _build(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    draw = torch.Generator().manual_seed(7)
    inputs = torch.rand((24, 4), generator=draw)
    labels = torch.randint(3, (24,), generator=draw)
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(
        TensorDataset(inputs, labels), 8, shuffle=True, generator=generator
    )
    return SimpleNamespace(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        generator=generator,
        loader=loader,
    )


def _train_epoch(run):
    run.model.train()
    for inputs, labels in run.loader:
        loss = nn.functional.cross_entropy(run.model(inputs), labels)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
    run.scheduler.step()


def _state(run, epoch):
    return {
        "epoch": epoch,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "generator": run.generator.get_state(),
        "random": torch.get_rng_state(),
    }


def _check_resume(resume):
    for epoch_saved in (1, 3, 5):
        with tempfile.TemporaryDirectory() as folder:
            run = _build(seed=0)
            for epoch in range(1, 7):
                _train_epoch(run)
                if epoch == epoch_saved:
                    torch.save(_state(run, epoch), Path(folder, "run.pt"))
            after = torch.get_rng_state()
            built, epochs = [], []

            def build(seed, built=built):
                built.append(_build(seed))
                return built[-1]

            def train_epoch(run, epochs=epochs):
                epochs.append(1)
                _train_epoch(run)

            resumed = resume(Path(folder, "run.pt"), build, train_epoch)
        if resumed is None:
            raise Wrong("resume returned None, expected was the run. End with return.")
        if not isinstance(resumed, SimpleNamespace):
            raise Wrong(
                "resume returned a {}, expected was the whole run: what build "
                "returned, with model, optimizer and the rest.",
                type(resumed).__name__,
            )
        if len(epochs) != 6 - epoch_saved:
            raise Wrong(
                "Saved after epoch {}, to be trained up to epoch 6: you trained {} "
                "epochs, expected were {}. The file holds the epoch that was "
                "finished, not the next one. Section 2.",
                epoch_saved,
                len(epochs),
                6 - epoch_saved,
            )
        if resumed.scheduler.state_dict() != run.scheduler.state_dict():
            raise Wrong(
                "The scheduler is not where it was: it has counted {} epochs at a "
                "learning rate of {:g}, expected were {} at {:g}. Load its state "
                "before you train. Section 3.",
                resumed.scheduler.last_epoch,
                resumed.scheduler.get_last_lr()[0],
                run.scheduler.last_epoch,
                run.scheduler.get_last_lr()[0],
            )
        if not torch.equal(resumed.generator.get_state(), run.generator.get_state()):
            raise Wrong(
                "The loader's generator is not where it was, so the images come in "
                "another order. Section 3."
            )
        if not torch.equal(torch.get_rng_state(), after):
            raise Wrong(
                "PyTorch's random numbers are not where they were, so Dropout draws "
                "others. Something draws or seeds after you have restored them: "
                "build everything first, restore the random state last. Section 2."
            )
        theirs, ours = resumed.model.state_dict(), run.model.state_dict()
        apart = max((theirs[key] - ours[key]).abs().max().item() for key in ours)
        if apart:
            raise Wrong(
                "The weights differ by {:.3g} from the original run, expected was "
                "exactly 0. Which state is loaded, and which is not? Section 3.",
                apart,
            )


def _start_resume(file, build, train_epoch):
    state = torch.load(file, weights_only=True)
    torch.set_rng_state(state["random"])
    run = build(seed=123)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.generator.set_state(state["generator"])
    for _ in range(state["epoch"], 7):
        train_epoch(run)
    return run


def _resume(file, build, train_epoch):
    state = torch.load(file, weights_only=True)
    run = build(seed=123)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scheduler.load_state_dict(state["scheduler"])
    run.generator.set_state(state["generator"])
    torch.set_rng_state(state["random"])
    for _ in range(state["epoch"] + 1, 7):
        train_epoch(run)
    return run


def _resume_random_first(file, build, train_epoch):
    state = torch.load(file, weights_only=True)
    torch.set_rng_state(state["random"])
    run = build(seed=123)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scheduler.load_state_dict(state["scheduler"])
    run.generator.set_state(state["generator"])
    for _ in range(state["epoch"] + 1, 7):
        train_epoch(run)
    return run


def _resume_without_scheduler(file, build, train_epoch):
    state = torch.load(file, weights_only=True)
    run = build(seed=123)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.generator.set_state(state["generator"])
    torch.set_rng_state(state["random"])
    for _ in range(state["epoch"] + 1, 7):
        train_epoch(run)
    return run


def _resume_returns_model(file, build, train_epoch):
    return _resume(file, build, train_epoch).model


def _resume_same_seed(file, build, train_epoch):
    state = torch.load(file, weights_only=True)
    run = build(seed=0)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scheduler.load_state_dict(state["scheduler"])
    for _ in range(state["epoch"] + 1, 7):
        train_epoch(run)
    return run


def _resume_without_optimizer(file, build, train_epoch):
    state = torch.load(file, weights_only=True)
    run = build(seed=123)
    run.model.load_state_dict(state["model"])
    run.scheduler.load_state_dict(state["scheduler"])
    run.generator.set_state(state["generator"])
    torch.set_rng_state(state["random"])
    for _ in range(state["epoch"] + 1, 7):
        train_epoch(run)
    return run


resume = Exercise(
    _check_resume,
    start=_start_resume,
    hints=[
        "Three things are wrong: a number, a piece that is missing, and the order.",
        "Which epoch is stored in the file, and which one has to run next?",
        "What is in the file and never loaded? What does build() do to PyTorch's "
        "random numbers after you have set them?",
    ],
    solution=_resume,
    text="""
def resume(file, build, train_epoch):
    state = torch.load(file, weights_only=True)
    run = build(seed=123)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scheduler.load_state_dict(state["scheduler"])  # was missing
    run.generator.set_state(state["generator"])
    torch.set_rng_state(state["random"])               # last: build() draws numbers
    for _ in range(state["epoch"] + 1, 7):             # the stored epoch is finished
        train_epoch(run)
    return run
""",
    wrong_answers=[
        (_resume_random_first, "restore the random state last"),
        (_resume_without_scheduler, "scheduler is not where it was"),
        (_resume_same_seed, "another order"),
        (_resume_returns_model, "the whole run"),
        (_resume_without_optimizer, "Which state is loaded"),
    ],
)


# --- load_best ----------------------------------------------------------------------


def _check_load_best(load_best):
    cases = [  # (validation loss, accuracy) by epoch, and the best epoch
        ([(0.9, 0.6), (0.3, 0.9), (0.4, 0.95), (0.5, 0.9)], 2),
        ([(math.nan, 0.1), (0.9, 0.6), (0.8, 0.7), (1.2, 0.5)], 3),
        ([(0.12344, 0.9), (0.12339, 0.9), (0.12342, 0.9)], 2),
        ([(1 / epoch, 0.5) for epoch in range(1, 11)], 10),
    ]
    for measured, best in cases:
        with tempfile.TemporaryDirectory() as folder:
            for epoch, (loss, acc) in enumerate(measured, start=1):
                saved = nn.Linear(1, 1)
                nn.init.constant_(saved.weight, epoch)
                save_checkpoint(
                    folder,
                    epoch=epoch,
                    model=saved,
                    loss=loss,
                    acc=acc,
                    keep_last=None,
                )
            before = sorted(Path(folder).iterdir())
            model = nn.Linear(1, 1)
            weight = model.weight.item()
            epoch = load_best(folder, model)
            if sorted(Path(folder).iterdir()) != before:
                raise Wrong("The folder's files have changed. Only read them.")
        losses = [loss for loss, _ in measured]
        if epoch != best:
            if not isinstance(epoch, int):
                why = N_("Return the epoch, a whole number.")
            elif epoch == len(measured):
                why = N_("That is the newest epoch, not the best.")
            elif 0 < epoch < len(losses) and math.isnan(losses[epoch - 1]):
                why = N_("min() keeps a NaN that comes first: leave NaN out.")
            elif measured[0][0] == 0.12344:
                why = N_("The names hold rounded losses; read the files.")
            else:
                why = N_("The best has the lowest validation loss.")
            raise Wrong(
                "Validation losses {}: you chose epoch {!r}, expected was {}. {} "
                "Section 5.",
                losses,
                epoch,
                best,
                why,
            )
        if model.weight.item() == weight:
            raise Wrong(
                "Epoch {} is right, but the model's weights are as before: load "
                "that file's model_state_dict into the model. Section 5.",
                best,
            )
        if model.weight.item() != best:
            raise Wrong(
                "You return epoch {}, but the model got the weights of epoch {:g}. "
                "Section 5.",
                best,
                model.weight.item(),
            )


def _start_load_best(folder, model): ...


def _load_best(folder, model):
    contents = [read_checkpoint(file) for file in list_checkpoints(folder)]
    finite = [c for c in contents if math.isfinite(c["loss"])]
    best = min(finite, key=lambda c: c["loss"])
    model.load_state_dict(best["model_state_dict"])
    return best["epoch"]


def _best_by(key):
    def load_best(folder, model):
        contents = [read_checkpoint(file) for file in list_checkpoints(folder)]
        best = min(contents, key=key)
        model.load_state_dict(best["model_state_dict"])
        return best["epoch"]

    return load_best


def _best_by_name(folder, model):
    files = [f for f in list_checkpoints(folder) if "_nan_" not in f.name]
    content = read_checkpoint(min(files, key=lambda f: float(f.name.split("_")[3])))
    model.load_state_dict(content["model_state_dict"])
    return content["epoch"]


def _best_not_loaded(folder, model):
    return _load_best(folder, copy.deepcopy(model))


def _best_not_returned(folder, model):
    _load_best(folder, model)


load_best = Exercise(
    _check_load_best,
    start=_start_load_best,
    hints=[
        "read_checkpoint(file) gives a dict with epoch, loss and model_state_dict.",
        "Read all of them, then min(contents, key=lambda content: content['loss']).",
        "A diverged epoch has loss nan: import math, and keep only the contents with "
        "math.isfinite(content['loss']).",
    ],
    solution=_load_best,
    text="""
import math


def load_best(folder, model):
    contents = [read_checkpoint(file) for file in list_checkpoints(folder)]
    finite = [c for c in contents if math.isfinite(c["loss"])]
    best = min(finite, key=lambda c: c["loss"])
    model.load_state_dict(best["model_state_dict"])
    return best["epoch"]
""",
    wrong_answers=[
        (
            lambda folder, model: read_checkpoint(list_checkpoints(folder)[-1])[
                "epoch"
            ],
            "the newest epoch",
        ),
        (_best_by(lambda c: -c["acc"]), "lowest validation loss"),
        (_best_by(lambda c: c["loss"]), "leave NaN out"),
        (_best_by_name, "rounded losses"),
        (_best_not_loaded, "as before"),
        (_best_not_returned, "a whole number"),
    ],
)


# --- early_stopping -----------------------------------------------------------------


def _check_early_stopping(early_stopping):
    cases = [  # patience, losses
        (3, [0.9, 0.8, 0.7, 0.71, 0.72, 0.73]),
        (3, [0.9, 0.5, 0.6, 0.4, 0.5, 0.6, 0.7]),
        (3, [0.9, 0.5, 0.8, 0.7, 0.6]),
        (3, [0.5, math.nan, math.nan, math.nan]),
        (3, [0.5, 0.5, 0.5, 0.5]),
        (3, [2.9, 2.5, 2.3, 2.2]),
        (3, [math.nan, 0.5, 0.4, 0.6, 0.3]),
        (2, [0.9, 0.8, 0.85, 0.7, 0.8, 0.9]),
    ]
    for interrupted in [None, *range(1, 7)]:
        for patience, losses in cases:
            stopper = early_stopping(patience=patience)
            answers = []
            for step, loss in enumerate(losses):
                if step == interrupted:
                    with tempfile.TemporaryDirectory() as folder:
                        file = Path(folder, "stopper.pt")
                        torch.save(stopper.state_dict(), file)
                        state = torch.load(file, weights_only=True)
                    stopper = early_stopping(patience=patience)
                    stopper.load_state_dict(state)
                answers.append(bool(stopper.should_stop(loss)))
            expected = _expected_stops(losses, patience)
            if answers == expected:
                continue
            shown = f"Patience {patience}, losses {losses}: you answered {answers}, "
            shown += f"expected was {expected}"
            if interrupted is not None:
                raise Wrong(
                    "{}, when interrupted before loss {}. Without an interruption "
                    "you are right. What does state_dict leave out: the best loss, "
                    "or the number of epochs without progress?",
                    shown,
                    interrupted + 1,
                )
            if losses[2] == 0.8:
                shown += ". Compare with the best loss so far, not with the last one"
            elif math.isnan(losses[1]):
                shown += ". NaN is no progress: nan < 0.5 is False, and so is nan > 0.5"
            elif math.isnan(losses[0]):
                shown += ". A first loss of NaN is no best: nothing is below NaN"
            elif losses[0] == losses[1]:
                shown += ". An equal loss is no progress"
            elif losses[0] > 1:
                shown += ". A loss can be above 1: begin with best = math.inf"
            elif patience == 2:
                shown += ". Use the patience that was given"
            raise Wrong(
                "{}. Stop when {} epochs in a row have not improved the best loss.",
                shown,
                patience,
            )


def _expected_stops(losses, patience):
    best, bad, stops = math.inf, 0, []
    for loss in losses:
        best, bad = (loss, 0) if loss < best else (best, bad + 1)
        stops.append(bad >= patience)
    return stops


class _StartEarlyStopping: ...


class _EarlyStopping:
    def __init__(self, patience):
        self.patience, self.best, self.bad_epochs = patience, math.inf, 0

    def should_stop(self, val_loss):
        if val_loss < self.best:
            self.best, self.bad_epochs = val_loss, 0
        else:
            self.bad_epochs += 1
        return self.bad_epochs >= self.patience

    def state_dict(self):
        return {"best": self.best, "bad_epochs": self.bad_epochs}

    def load_state_dict(self, state):
        self.best, self.bad_epochs = state["best"], state["bad_epochs"]


class _ForgetsCount(_EarlyStopping):
    def state_dict(self):
        return {"best": self.best}

    def load_state_dict(self, state):
        self.best = state["best"]


class _ForgetsBest(_EarlyStopping):
    def state_dict(self):
        return {"bad_epochs": self.bad_epochs}

    def load_state_dict(self, state):
        self.bad_epochs = state["bad_epochs"]


class _ComparesWithLast(_EarlyStopping):
    def should_stop(self, val_loss):
        self.bad_epochs = 0 if val_loss < self.best else self.bad_epochs + 1
        self.best = val_loss
        return self.bad_epochs >= self.patience


class _NanIsProgress(_EarlyStopping):
    def should_stop(self, val_loss):
        if val_loss >= self.best:
            self.bad_epochs += 1
        else:
            self.best, self.bad_epochs = val_loss, 0
        return self.bad_epochs >= self.patience


class _EqualIsProgress(_EarlyStopping):
    def should_stop(self, val_loss):
        if val_loss <= self.best:
            self.best, self.bad_epochs = val_loss, 0
        else:
            self.bad_epochs += 1
        return self.bad_epochs >= self.patience


class _BestBelowOne(_EarlyStopping):
    def __init__(self, patience):
        self.patience, self.best, self.bad_epochs = patience, 1.0, 0


class _AlwaysThree(_EarlyStopping):
    def __init__(self, patience):
        super().__init__(3)


class _FirstIsBest(_EarlyStopping):
    def should_stop(self, val_loss):
        if self.best == math.inf:
            self.best = val_loss
            return False
        return super().should_stop(val_loss)


early_stopping = Exercise(
    _check_early_stopping,
    start=_StartEarlyStopping,
    hints=[
        "Remember two things: the best loss so far, and how many epochs in a row have "
        "not improved it.",
        "Import math, and begin with best = math.inf. `val_loss < best` is False for "
        "NaN: that is what you want.",
        "state_dict returns both as a dict of plain numbers; load_state_dict sets "
        "both.",
    ],
    solution=_EarlyStopping,
    text="""
import math


class EarlyStopping:
    def __init__(self, patience):
        self.patience, self.best, self.bad_epochs = patience, math.inf, 0

    def should_stop(self, val_loss):
        if val_loss < self.best:
            self.best, self.bad_epochs = val_loss, 0
        else:
            self.bad_epochs += 1
        return self.bad_epochs >= self.patience

    def state_dict(self):
        return {"best": self.best, "bad_epochs": self.bad_epochs}

    def load_state_dict(self, state):
        self.best, self.bad_epochs = state["best"], state["bad_epochs"]
""",
    wrong_answers=[
        (_ForgetsCount, "What does state_dict leave out"),
        (_ForgetsBest, "What does state_dict leave out"),
        (_ComparesWithLast, "not with the last one"),
        (_NanIsProgress, "NaN is no progress"),
        (_EqualIsProgress, "An equal loss is no progress"),
        (_BestBelowOne, "above 1"),
        (_FirstIsBest, "no best"),
        (_AlwaysThree, "patience that was given"),
    ],
)


# --- deeper -------------------------------------------------------------------------


def _check_background_saver(saver_class):
    for _ in range(3):  # a wrong one may have luck: two threads race
        _check_two_saves(saver_class)
    _check_errors_come_out(saver_class)


def _check_two_saves(saver_class):
    written, active = {}, []

    def write(state, file):
        active.append(file)
        together = len(active)
        time.sleep(0.1)
        written[file] = copy.deepcopy(state), together
        active.remove(file)

    saver = saver_class(write)
    state = {"weight": torch.zeros(3), "optimizer": {"step": torch.zeros(1)}}
    saver.save(state, "1.pt")
    if written:
        raise Wrong(
            "save(...) came back only when its own file was written: the loop stalls "
            "as before. Wait for the previous write, not for this one. Section 5."
        )
    state["weight"].fill_(1)
    state["optimizer"]["step"].fill_(1)
    saver.save(state, "2.pt")
    saver.wait()
    if {*written} != {"1.pt", "2.pt"}:
        raise Wrong(
            "After two saves and wait(), written are {}, expected were 1.pt and "
            "2.pt. wait() has to wait until all is written. Section 5.",
            sorted(written),
        )
    if max(together for _, together in written.values()) > 1:
        raise Wrong(
            "Two writes ran at once. If the older one finishes last, the newest file "
            "is old, and each holds a copy in memory. Wait for the previous write "
            "before you start the next. Section 5."
        )
    for number, file in enumerate(("1.pt", "2.pt")):
        (saved, _), words = written[file], "The loop went on after save(...), and "
        if (saved["weight"] != number).any():
            raise Wrong(
                "{}{} holds {}, expected was {}: the weights changed in place while "
                "they were written. Copy the tensors, not only the dict. Section 5.",
                words,
                file,
                saved["weight"].tolist(),
                [float(number)] * 3,
            )
        if (saved["optimizer"]["step"] != number).any():
            raise Wrong(
                "{}the optimizer's state changed with it: a state has dicts within "
                "dicts. Copy deeply. Section 5.",
                words,
            )


class _DiskFull(OSError):
    pass


def _check_errors_come_out(saver_class):
    def write(state, file):
        if file == "bad.pt":
            raise _DiskFull("No space left on device")
        written.append(file)

    for then_save in (False, True):
        written, saver = [], saver_class(write)
        try:
            saver.save({}, "bad.pt")
            if then_save:
                saver.save({}, "good.pt")
            saver.wait()
        except _DiskFull:
            continue
        calls = "the next save(...)" if then_save else "wait()"
        raise Wrong(
            "The disk was full, and {} said nothing: you would train on without a "
            "checkpoint. future.result() waits and raises; exception() only returns "
            "the error. Section 5.",
            calls,
        )


class _StartSaver:
    def __init__(self, write):
        self.write, self.pool, self.last = write, ThreadPoolExecutor(), None

    def save(self, state, file):
        self.last = self.pool.submit(self.write, state, file)

    def wait(self):
        if self.last is not None:
            self.last.exception()  # waits until it is done


class _Saver(_StartSaver):
    def save(self, state, file):
        self.wait()
        self.last = self.pool.submit(self.write, copy.deepcopy(state), file)

    def wait(self):
        if self.last is not None:
            self.last.result()


class _NoCopy(_Saver):
    def save(self, state, file):
        self.wait()
        self.last = self.pool.submit(self.write, state, file)


class _CopyOfDict(_NoCopy):
    def save(self, state, file):
        super().save(dict(state), file)


class _CopyOfTensors(_NoCopy):
    def save(self, state, file):
        copied = {k: v.clone() if torch.is_tensor(v) else v for k, v in state.items()}
        super().save(copied, file)


class _CopyInThread(_Saver):
    def save(self, state, file):
        def work():
            time.sleep(0.01)  # a thread starts when it likes
            self.write(copy.deepcopy(state), file)

        self.wait()
        self.last = self.pool.submit(work)


class _NotInTurn(_Saver):
    def __init__(self, write):
        super().__init__(write)
        self.all = []

    def save(self, state, file):
        self.last = self.pool.submit(self.write, copy.deepcopy(state), file)
        self.all.append(self.last)

    def wait(self):
        for future in self.all:
            future.result()


class _Synchronous(_Saver):
    def save(self, state, file):
        super().save(state, file)
        self.wait()


class _Swallows(_Saver):
    def wait(self):
        if self.last is not None:
            self.last.exception()


class _NeverWaits(_Saver):
    def wait(self):
        pass


class _OnlyLastError(_Saver):
    def save(self, state, file):
        if self.last is not None:
            self.last.exception()
        self.last = self.pool.submit(self.write, copy.deepcopy(state), file)


background_saver = Exercise(
    _check_background_saver,
    start=_StartSaver,
    hints=[
        "Which object does the thread write, and who changes it meanwhile?",
        "copy.deepcopy(state) must run before submit, in the loop's own thread.",
        "future.result() waits like exception(), and raises what the write raised.",
        "save: self.wait(), then submit a deep copy. wait: self.last.result().",
    ],
    solution=_Saver,
    text="""
class BackgroundSaver:
    def __init__(self, write):
        self.write, self.pool, self.last = write, ThreadPoolExecutor(), None

    def save(self, state, file):
        self.wait()
        self.last = self.pool.submit(self.write, copy.deepcopy(state), file)

    def wait(self):
        if self.last is not None:
            self.last.result()
""",
    wrong_answers=[
        (_NoCopy, "changed in place"),
        (_CopyOfDict, "not only the dict"),
        (_CopyOfTensors, "Copy deeply"),
        (_CopyInThread, "changed in place"),
        (_NotInTurn, "at once"),
        (_Synchronous, "came back only when"),
        (_Swallows, "said nothing"),
        (_NeverWaits, "has to wait until"),
        (_OnlyLastError, "next save(...) said nothing"),
    ],
)

quiz = define(globals())
