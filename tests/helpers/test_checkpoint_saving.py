"""What a save leaves in the folder: the file, its name, and what retention keeps."""

import math
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_support import (
    Run,
    epochs,
    failing,
    fingerprint,
    flip_a_bit,
    names,
    ordinary_user,
    strays,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)

MODEL = nn.Linear(2, 2)


def save(folder: Path, epoch: int, **options: object) -> Path:
    return save_checkpoint(folder, epoch=epoch, model=MODEL, **options)


# --- the file


def test_the_file_is_one_plain_dict_and_the_helper_works_alone(tmp_path: Path) -> None:
    """It is copied into a project, and its files are read without it."""
    source = Path(__file__).parents[2] / "helpers" / "checkpoint.py"
    (tmp_path / "checkpoint.py").write_bytes(source.read_bytes())
    code = (
        "import checkpoint, sys, torch; model = torch.nn.Linear(2, 2)\n"
        "options = {'model': model, 'loss': 0.12345, 'acc': 1}\n"
        "print(checkpoint.save_checkpoint('Übung 4/模型 ✓', epoch=1, **options).name)\n"
        "print(checkpoint.load_checkpoint('Übung 4/模型 ✓', model=model)['epoch'])\n"
        "print('helpers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "", "PYTHONUTF8": "1"},
    )
    name = "checkpoint_model_1_0.1235_1.0000.pt"
    assert done.stdout.split() == [name, "1", "False"], done.stderr
    file = tmp_path / "Übung 4" / "模型 ✓" / name
    content = torch.load(file, weights_only=True)
    assert type(content) is dict
    assert (content["epoch"], content["loss"], content["acc"]) == (1, 0.12345, 1.0)
    assert content["model_state_dict"]._metadata == MODEL.state_dict()._metadata


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (lambda: 0, "pickle"),
        (np.float32(1), "scalar"),
        (np.zeros(2), "_reconstruct"),
        (Path("x"), "Path"),
        (defaultdict(int, a=1), "defaultdict"),
    ],
)
def test_a_value_that_a_safe_load_refuses_is_refused_by_the_save(
    tmp_path: Path, value: object, named: str
) -> None:
    old = save(tmp_path, 1)
    before = old.read_bytes()
    for epoch in (1, 2):
        with pytest.raises(CheckpointError, match=rf"plain values.*{named}"):
            save(tmp_path, epoch, extra={"x": value})
    assert old.read_bytes() == before
    assert names(tmp_path) == [old.name]
    assert strays(tmp_path) == []


@pytest.mark.parametrize(
    "loss", [torch.tensor([0.5]), np.float32(0.5), np.float64(0.5)]
)
def test_a_tensors_or_numpys_loss_is_stored_as_a_float(
    tmp_path: Path, loss: object
) -> None:
    content = read_checkpoint(
        save(tmp_path, np.int64(1), loss=loss, acc=torch.tensor(1))
    )
    assert names(tmp_path) == ["checkpoint_model_1_0.5000_1.0000.pt"]
    assert repr([content[key] for key in ("epoch", "loss", "acc")]) == "[1, 0.5, 1.0]"


def test_arguments_out_of_range_are_refused(tmp_path: Path) -> None:
    for options in ({"epoch": -1}, {"keep_last": 1}, {"keep_last": 0}):
        with pytest.raises(ValueError, match=r"epoch=.*keep_last="):
            save_checkpoint(tmp_path, **{"epoch": 1, "model": MODEL, **options})
    with pytest.raises((RuntimeError, ValueError)):
        save(tmp_path, 1, loss=torch.zeros(2))
    assert list(tmp_path.iterdir()) == []


def test_training_goes_on_after_a_save_and_the_file_does_not(tmp_path: Path) -> None:
    run = Run().train(1)
    expected = fingerprint(run.model.state_dict())
    file = save_checkpoint(tmp_path, epoch=1, **run.parts())
    run.train(1)
    assert fingerprint(read_checkpoint(file)["model_state_dict"]) == expected
    assert fingerprint(run.model.state_dict()) != expected


# --- verified before it counts


def test_crc_switched_off(tmp_path: Path) -> None:
    old = save(tmp_path, 1)
    torch.serialization.set_crc32_options(False)
    try:
        with pytest.raises(CheckpointError, match="CRC-32 was off"):
            save(tmp_path, 2)
    finally:
        torch.serialization.set_crc32_options(True)
    assert names(tmp_path) == [old.name]
    assert strays(tmp_path) == []


@pytest.mark.parametrize("harm", ["a bit", "a record"])
def test_a_disk_that_changes_or_loses_what_is_written(
    tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, torch_save = save(tmp_path, 1), torch.save

    def harmed(content: dict, stream: object) -> None:
        with tempfile.TemporaryDirectory() as folder:
            torch_save(content, file := Path(folder) / "whole.pt")
            if harm == "a bit":
                flip_a_bit(file)
                stream.write(file.read_bytes())
                return
            source = zipfile.ZipFile(file)
            with zipfile.ZipFile(stream, "w") as target:
                for name in source.namelist():
                    if not name.endswith("data/0"):
                        target.writestr(name, source.read(name))

    monkeypatch.setattr(torch, "save", harmed)
    with pytest.raises(CheckpointError, match="epoch 2 was not saved"):
        save(tmp_path, 2)
    assert names(tmp_path) == [old.name]
    assert strays(tmp_path) == []


def test_it_is_on_the_disk_before_the_rename_and_deleted_is_last(
    tmp_path: Path,
) -> None:
    for epoch in (1, 2, 3):
        save(tmp_path, epoch)
    with failing(tmp_path) as log:
        save(tmp_path, 4)
    steps = [step for step in log if step in ("fsync", "rename", "delete")]
    assert steps == ["fsync", "rename", "rename", "fsync", "delete"]


# --- names and epochs


numbers = st.none() | st.floats() | st.floats(-10, 10)


@settings(max_examples=40, deadline=None, database=None)
@given(st.integers(0, 10**12), numbers, numbers)
def test_names_of_any_numbers_are_listed_and_the_content_is_exact(
    epoch: int, loss: float | None, acc: float | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = save(Path(folder), epoch, loss=loss, acc=acc)
        assert list_checkpoints(folder) == [file]
        content = read_checkpoint(file)
        stored = [content[key] for key in ("epoch", "loss", "acc")]
        assert repr(stored) == repr([epoch, loss, acc])
        if loss is not None and abs(loss) < 1e9:
            assert file.name.startswith(f"checkpoint_model_{epoch}_{loss:.4f}_")


def test_foreign_files_and_duplicates_are_passed_over(tmp_path: Path) -> None:
    file = save(tmp_path, 1, loss=0.5, acc=0.5)
    foreign = [
        "checkpoint_model_1_0.5000_0.5000 (1).pt",
        "checkpoint_model_9_0.5000_0.5000.pt.tmp",
        "Copy of checkpoint_model_9_0.5000_0.5000.pt",
        "checkpoint_model_٣_0.5000_0.5000.pt",
        "checkpoint_model_9_0.5000.pt",
        "model.pt",
    ]
    for name in foreign:
        (tmp_path / name).write_bytes(b"theirs")
    for epoch in (2, 3, 4, 5):
        save(tmp_path, epoch, loss=1.0)
    assert epochs(tmp_path) == [1, 3, 4, 5]
    assert strays(tmp_path) == sorted(foreign)
    assert all((tmp_path / name).read_bytes() == b"theirs" for name in foreign)
    copy = file.rename(tmp_path / foreign[0])  # by its own name a copy can be loaded
    assert load_checkpoint(copy, model=MODEL)["epoch"] == 1


def test_a_run_in_the_folder_of_a_longer_run_is_refused(tmp_path: Path) -> None:
    """Else a load takes epoch 50, and retention keeps one file of the new run."""
    for epoch in (48, 49, 50):
        save(tmp_path, epoch)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for epoch in (1, 49):
        with pytest.raises(CheckpointError, match=r"holds epoch 50.*new folder"):
            save(tmp_path, epoch)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert epochs(tmp_path) == [48, 49, 50]
    save(tmp_path, 51)


def test_damaged_later_epochs_do_not_stop_a_resumed_run(tmp_path: Path) -> None:
    """Two are damaged; the run falls back to epoch 1 and trains them again."""
    files = [save(tmp_path, epoch) for epoch in (1, 2, 3)]
    for file in files[1:]:
        flip_a_bit(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_checkpoint(tmp_path, model=MODEL)["epoch"] == 1
        for epoch in (2, 3):
            save(tmp_path, epoch, loss=0.5)
    assert epochs(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("losses", [[0.3, 0.2, 0.4], [0.2, 0.4, 0.3], [0.5, 0.5, 0.5]])
def test_an_epoch_saved_again_replaces_its_file(
    tmp_path: Path, losses: list[float]
) -> None:
    save(tmp_path, 4)
    for turn, loss in enumerate(losses):
        file = save(tmp_path, 5, loss=loss, extra={"turn": turn})
        assert names(tmp_path) == ["checkpoint_model_4_none_none.pt", file.name]
        assert f"_5_{loss:.4f}_" in file.name
        assert load_checkpoint(tmp_path, model=MODEL)["extra"] == {"turn": turn}


def test_an_epoch_saved_again_is_one_file_when_the_second_rename_fails(
    tmp_path: Path,
) -> None:
    """As when it is killed there: the later state, under the older file's name."""
    old = save(tmp_path, 5, loss=0.3)
    renames = []

    def fail(operation: str, _: int) -> OSError | None:
        renames.extend([operation] * (operation == "rename"))
        return OSError(5, "no") if len(renames) == 2 else None

    with failing(tmp_path, fail), pytest.warns(UserWarning, match="epoch 5 is saved"):
        assert save(tmp_path, 5, loss=0.2) == old
    assert names(tmp_path) == [old.name]
    assert load_checkpoint(tmp_path, model=MODEL)["loss"] == 0.2


# --- retention


@settings(max_examples=25, deadline=None, database=None)
@given(
    st.lists(st.integers(0, 2000), min_size=1, max_size=8, unique=True).map(sorted),
    st.integers(2, 4),
    st.data(),
)
def test_the_last_and_the_best_are_kept(
    saved: list[int], keep_last: int, data: st.DataObject
) -> None:
    """The rule, written a second way: after each save, which epochs must be there."""
    values = st.sampled_from([0.1, 0.10001, 2.0, None, math.nan, math.inf, -math.inf])
    losses = {epoch: data.draw(values) for epoch in saved}
    with tempfile.TemporaryDirectory() as folder:
        present: list[int] = []
        for epoch in saved:
            save(Path(folder), epoch, loss=losses[epoch], keep_last=keep_last)
            finite = {e: losses[e] for e in [*present, epoch]}
            finite = {e: x for e, x in finite.items() if x in (0.1, 0.10001, 2.0)}
            best = [e for e in finite if finite[e] == min(finite.values())][-1:]
            kept = {*[*present, epoch][-keep_last:], *best}
            present = [e for e in [*present, epoch] if e in kept]
            assert epochs(Path(folder)) == present
            assert strays(Path(folder)) == []


def test_keep_last_none_keeps_all_in_order_whatever_the_time_stamps(
    tmp_path: Path,
) -> None:
    for epoch in (0, 1, 9, 10, 100):
        os.utime(save(tmp_path, epoch, keep_last=None), (1e9 - epoch, 1e9 - epoch))
    assert epochs(tmp_path) == [0, 1, 9, 10, 100]
    assert load_checkpoint(tmp_path, model=MODEL)["epoch"] == 100


@pytest.mark.parametrize("keep_last", [2, 3])
@pytest.mark.parametrize("bad", [1, 2])
def test_a_damaged_file_does_not_count(
    tmp_path: Path, keep_last: int, bad: int
) -> None:
    """After flipped bits, which torch.load does not see, `keep_last` good ones stay."""
    files = [save(tmp_path, epoch, keep_last=None) for epoch in range(1, 7)]
    for file in files[-bad:]:
        flip_a_bit(file)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        files.append(save(tmp_path, 7, keep_last=keep_last))
    damaged, listed = files[-bad - 1 : -1], list_checkpoints(tmp_path)
    good = [*files[: 6 - bad], files[-1]]
    assert [file for file in listed if file in good] == good[-keep_last:]
    assert [file for file in listed if file in damaged] == damaged, "they stay"
    assert [str(w.message).split()[0] for w in seen] == names(tmp_path)[
        -2 : -2 - bad : -1
    ]


def test_the_best_that_is_damaged_gives_way_to_the_next(tmp_path: Path) -> None:
    files = [save(tmp_path, e, loss=e, keep_last=None) for e in (1, 2, 3, 4)]
    flip_a_bit(files[0])
    with pytest.warns(UserWarning, match=files[0].name):
        save(tmp_path, 5, loss=5, keep_last=2)
    assert [file.exists() for file in files] == [True, True, False, True]


def test_a_failed_delete_warns_and_the_save_succeeds() -> None:
    """A folder as /tmp is: all may write to it, and delete their own files only."""
    if os.geteuid() != 0:
        pytest.skip("needs files of another user's")
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "shared"
        for epoch in (1, 2):
            save(folder, epoch, keep_last=2)
        Path(parent).chmod(0o755)
        folder.chmod(0o1777)
        for file in folder.iterdir():
            file.chmod(0o644)
        old = list_checkpoints(folder)[0].name
        with ordinary_user(), pytest.warns(UserWarning, match=rf"is saved.*{old}"):
            save(folder, 3, keep_last=2)
        assert epochs(folder) == [1, 2, 3]
        save(folder, 4, keep_last=2)
        assert epochs(folder) == [3, 4]
