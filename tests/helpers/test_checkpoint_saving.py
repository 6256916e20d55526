"""What a save leaves in the folder: the file, its name, and what retention keeps."""

import math
import os
import random
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_support import Disk, Training, fingerprint, good_epochs, strays
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import checkpoint
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


def names(folder: Path) -> list[str]:
    return [file.name for file in list_checkpoints(folder)]


# --- the file


def test_the_file_is_one_plain_dict_readable_without_the_helper(tmp_path: Path) -> None:
    training = Training().train(1, 1)
    file = save_checkpoint(
        tmp_path / "a" / "b", epoch=1, **training.parts(), loss=0.12345, acc=1, extra={}
    )
    assert file == tmp_path / "a" / "b" / "checkpoint_model_1_0.1235_1.0000.pt"
    code = (
        "import sys, torch\n"
        "c = torch.load(sys.argv[1], weights_only=True)\n"
        "assert 'helpers' not in sys.modules and type(c) is dict\n"
        "print(sorted(c), c['epoch'], c['loss'], len(c['model_state_dict']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True
    )
    keys = ["acc", "cuda_random_states", "epoch", "extra", "format_version", "forms"]
    keys += ["generator_state", "loss", "model_state_dict", "numpy_random_state"]
    keys += ["optimizer_state_dict", "python_random_state", "save_number"]
    keys += ["scheduler_state_dict", "torch_random_state"]
    assert done.stdout.strip() == f"{keys} 1 0.12345 9", done.stderr
    state = torch.load(file, weights_only=True)["model_state_dict"]
    assert type(state) is OrderedDict
    assert state._metadata == training.model.state_dict()._metadata


def test_all_random_states_are_in_the_file(tmp_path: Path) -> None:
    content = read_checkpoint(save(tmp_path, 1, generator=torch.Generator()))
    assert content["python_random_state"] == random.getstate()
    key = np.random.get_state()[1].tolist()
    assert content["numpy_random_state"]["state"]["key"] == key
    assert torch.equal(content["torch_random_state"], torch.get_rng_state())
    assert torch.equal(content["generator_state"], torch.Generator().get_state())


def test_case_05_unpicklable_extra(tmp_path: Path) -> None:
    old = save(tmp_path, 1)
    before = old.read_bytes()
    with pytest.raises(CheckpointError, match=r"extra\['f'\].*plain values"):
        save(tmp_path, 2, extra={"f": lambda: 0})
    with pytest.raises(CheckpointError, match=r"extra\['f'\]"):
        save(tmp_path, 1, extra={"f": open(os.devnull)})  # noqa: SIM115, PTH123
    assert old.read_bytes() == before
    assert names(tmp_path) == [old.name]
    assert strays(tmp_path) == []


@pytest.mark.parametrize(
    "value", [np.float32(1), np.zeros(2), Path("x"), range(3), {1: [np.int64(2)]}]
)
def test_case_06_numpy_scalar_in_extra_is_refused(
    tmp_path: Path, value: object
) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"extra\['x'\].*x\.tolist\(\)"):
        save(tmp_path, 2, extra={"x": value})
    assert good_epochs(tmp_path) == [1]
    assert strays(tmp_path) == []


@pytest.mark.parametrize("value", [defaultdict(int, a=1), {np.int64(1): 2}])
def test_case_06_whatever_a_safe_load_refuses_is_found_by_name(
    tmp_path: Path, value: object
) -> None:
    with pytest.raises(CheckpointError, match=r"extra\['x'\].*plain values"):
        save(tmp_path, 1, extra={"x": value})
    assert strays(tmp_path) == []


def test_case_06_what_a_safe_load_takes_is_not_blamed(tmp_path: Path) -> None:
    fine = [{1, 2}, torch.float32, 1j, OrderedDict(a=1), torch.Size([2])]
    save(tmp_path, 1, extra={"fine": fine})
    with pytest.raises(CheckpointError, match=r"extra\['f'\]") as error:
        save(tmp_path, 2, extra={"fine": fine, "f": print})
    assert "fine" not in str(error.value)


def test_too_little_memory_is_raised_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(MemoryError):
        save(tmp_path, 1)
    assert strays(tmp_path) == []


def test_case_06_numpy_learning_rate_is_found_by_name(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(MODEL.parameters(), lr=np.float64(0.1))
    with pytest.raises(CheckpointError, match=r"\['param_groups'\]\[0\]\['lr'\]"):
        save(tmp_path, 1, optimizer=optimizer)


@pytest.mark.parametrize(
    "loss", [torch.tensor(0.5, requires_grad=True), np.float32(0.5), np.array([[0.5]])]
)
def test_case_07_tensor_or_numpy_loss_is_stored_as_float(
    tmp_path: Path, loss: object
) -> None:
    if isinstance(loss, np.ndarray):
        loss = torch.from_numpy(loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = save(tmp_path, 1, loss=loss, acc=torch.tensor([1]))
    content = read_checkpoint(file)
    assert file.name == "checkpoint_model_1_0.5000_1.0000.pt"
    assert (type(content["loss"]), content["loss"]) == (float, 0.5)
    assert (type(content["acc"]), content["acc"]) == (float, 1.0)


def test_arguments_out_of_range_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="epoch=-1"):
        save(tmp_path, -1)
    with pytest.raises(TypeError):
        save(tmp_path, 1.5)
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        save(tmp_path, 1, loss=torch.zeros(2))
    assert save(tmp_path, np.int64(3)).name == "checkpoint_model_3_none_none.pt"
    assert type(read_checkpoint(list_checkpoints(tmp_path)[0])["epoch"]) is int


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_case_08_nan_or_inf_loss_is_saved_and_never_best(
    tmp_path: Path, loss: float
) -> None:
    save(tmp_path, 1, loss=loss)
    best = save(tmp_path, 2, loss=5.0)
    for epoch in range(3, 8):
        save(tmp_path, epoch, loss=loss, keep_last=2)
    assert good_epochs(tmp_path) == [2, 6, 7]
    assert best.exists()
    content = read_checkpoint(list_checkpoints(tmp_path)[-1])
    assert repr(content["loss"]) == repr(loss)


def test_case_11_order_write_sync_verify_replace_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything before the replace has ended by then; deletion comes last."""
    for epoch in (1, 2, 3):
        save(tmp_path, epoch)
    disk = Disk(lambda *_: None)
    sizes, real_fsync = [], os.fsync

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        sizes.append(os.fstat(descriptor).st_size)
        disk.log.append("synced")

    monkeypatch.setattr(os, "fsync", fsync)
    testzip, load = zipfile.ZipFile.testzip, torch.load
    real_save = torch.save

    def logged(name: str, call: object) -> object:
        def run(*args: object, **kwargs: object) -> object:
            result = call(*args, **kwargs)
            disk.log.append(name)
            return result

        return run

    monkeypatch.setattr(zipfile.ZipFile, "testzip", logged("tested", testzip))
    monkeypatch.setattr(torch, "load", logged("loaded", load))
    monkeypatch.setattr(torch, "save", logged("saved", real_save))
    with disk.under(tmp_path):
        file = save(tmp_path, 4)
    log = disk.log
    replace = log.index("replace")
    end_of_writes = max(i for i, step in enumerate(log[:replace]) if step == "write")
    synced, tested = log.index("synced"), log.index("tested")
    assert log.index("saved") < synced
    assert end_of_writes < synced < replace
    assert end_of_writes < tested < replace
    assert end_of_writes < log.index("loaded", tested) < replace
    assert sizes[0] == file.stat().st_size, "synced before all was written"
    folder_synced = log.index("synced", replace)
    deletions = [i for i, step in enumerate(log) if step == "delete"]
    assert deletions
    assert replace < folder_synced < min(deletions)
    assert good_epochs(tmp_path) == [2, 3, 4]


def test_case_42_training_goes_on_after_a_save(tmp_path: Path) -> None:
    training = Training().train(1, 1)
    expected = fingerprint(training.model.state_dict())
    file = save_checkpoint(tmp_path, epoch=1, **training.parts())
    before = file.read_bytes()
    training.train(2, 3)
    assert file.read_bytes() == before
    assert fingerprint(read_checkpoint(file)["model_state_dict"]) == expected
    assert fingerprint(training.model.state_dict()) != expected


def test_case_45_crc_switched_off(tmp_path: Path) -> None:
    old = save(tmp_path, 1)
    torch.serialization.set_crc32_options(False)
    try:
        with pytest.raises(CheckpointError, match="set_crc32_options"):
            save(tmp_path, 2)
    finally:
        torch.serialization.set_crc32_options(True)
    assert names(tmp_path) == [old.name]
    assert strays(tmp_path) == []


def test_what_was_written_is_verified_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that changes one bit, and a zip that lacks a record, on the way."""
    old, real_save = save(tmp_path, 1), torch.save

    def flipping(content: dict, stream: object) -> None:
        real_save(content, stream)
        stream.flush()
        size = stream.tell()
        with open(stream.name, "r+b") as again:  # noqa: PTH123
            raw = again.read()
            at = raw.index(MODEL.weight.detach().numpy().tobytes())
            again.seek(at)
            again.write(bytes([raw[at] ^ 1]))
        assert stream.tell() == size

    def lacking(content: dict, stream: object) -> None:
        with tempfile.TemporaryFile() as whole:
            real_save(content, whole)
            source = zipfile.ZipFile(whole)
            with zipfile.ZipFile(stream, "w") as target:
                for name in source.namelist():
                    if not name.endswith("data/0"):
                        target.writestr(name, source.read(name))

    for saving in (flipping, lacking):
        monkeypatch.setattr(torch, "save", saving)
        with pytest.raises(CheckpointError, match="epoch 2 was not saved"):
            save(tmp_path, 2)
        assert names(tmp_path) == [old.name]
        assert strays(tmp_path) == []


# --- names


numbers = st.none() | st.floats() | st.floats(-10, 10)


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(0, 10**12), numbers, numbers)
def test_names_of_any_numbers_are_listed_and_agree_with_the_content(
    epoch: int, loss: float | None, acc: float | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = save(Path(folder), epoch, loss=loss, acc=acc)
        assert list_checkpoints(folder) == [file]
        assert len(file.name) <= 80
        assert file.name.startswith(f"checkpoint_model_{epoch}_")
        content = read_checkpoint(file)
        assert content["epoch"] == epoch
        assert repr((content["loss"], content["acc"])) == repr((loss, acc))
        if loss is not None and abs(loss) < 1e9:
            assert f"_{epoch}_{loss:.4f}_" in file.name


@settings(max_examples=25, deadline=None, database=None)
@given(
    st.lists(st.integers(0, 2000), min_size=1, max_size=6, unique=True),
    st.integers(2, 4),
    st.data(),
)
def test_any_epochs_in_any_order_are_kept_by_the_rule(
    epochs: list[int], keep_last: int, data: st.DataObject
) -> None:
    """The rule, written a second way: after each save, who must be there."""
    losses = {e: data.draw(st.sampled_from([0.1, 0.10001, 2.0, None])) for e in epochs}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        present: list[int] = []
        for epoch in epochs:
            save(Path(folder), epoch, loss=losses[epoch], keep_last=keep_last)
            present = sorted([*present, epoch])
            finite = [(losses[e], e) for e in present if losses[e] is not None]
            keep = {epoch, *present[-keep_last:], *([min(finite)[1]] if finite else [])}
            present = [e for e in present if e in keep]
            assert good_epochs(Path(folder)) == present
        model = nn.Linear(2, 2)
        assert load_checkpoint(folder, model=model)["epoch"] == max(present)


@settings(max_examples=200, deadline=None, database=None)
@given(st.text(max_size=12), st.text(max_size=4), st.sampled_from([".pt", ".pt\n", ""]))
def test_other_names_never_match(middle: str, end: str, suffix: str) -> None:
    name = f"checkpoint_model_1{middle}_0.5000{end}{suffix}"
    if checkpoint._NAME.fullmatch(name):
        assert name.isascii()
        assert suffix == ".pt"


def test_case_17_epoch_10_comes_after_epoch_9(tmp_path: Path) -> None:
    for epoch in (9, 10, 100):
        save(tmp_path, epoch)
    os.utime(
        list_checkpoints(tmp_path)[0]
    )  # the oldest epoch has the newest time stamp
    assert good_epochs(tmp_path) == [9, 10, 100]
    assert load_checkpoint(tmp_path, model=nn.Linear(2, 2))["epoch"] == 100


def test_case_20_foreign_files_and_duplicates_are_passed_over(tmp_path: Path) -> None:
    file = save(tmp_path, 1, loss=0.5, acc=0.5)
    foreign = [
        "checkpoint_model_1_0.5000_0.5000 (1).pt",
        "checkpoint_model_9_0.5000_0.5000.pt.tmp",
        "Copy of checkpoint_model_9_0.5000_0.5000.pt",
        "checkpoint_model_٣_0.5000_0.5000.pt",
        "checkpoint_model_9_0.5_0.5.pt",
        "model.pt",
        ".DS_Store",
    ]
    for name in foreign:
        (tmp_path / name).write_bytes(b"theirs")
    for epoch in (2, 3, 4, 5):
        save(tmp_path, epoch, loss=1.0)
    assert good_epochs(tmp_path) == [1, 3, 4, 5]
    assert strays(tmp_path) == sorted(foreign)
    assert all((tmp_path / name).read_bytes() == b"theirs" for name in foreign)
    copy = file.rename(tmp_path / foreign[0])  # by its own name a copy can be loaded
    assert load_checkpoint(copy, model=nn.Linear(2, 2))["epoch"] == 1


# --- retention


def test_case_15_a_failed_delete_warns_and_the_save_succeeds(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save(tmp_path, epoch, keep_last=2)

    def fail(operation: str, _: int) -> OSError | None:
        return PermissionError(1, "no") if operation == "delete" else None

    with (
        Disk(fail).under(tmp_path),
        pytest.warns(UserWarning, match="checkpoint_model_1_none_none.pt was not del"),
    ):
        file = save(tmp_path, 3, keep_last=2)
    assert file.exists()
    assert good_epochs(tmp_path) == [1, 2, 3]
    save(tmp_path, 4, keep_last=2)
    assert good_epochs(tmp_path) == [3, 4]


@pytest.mark.parametrize("keep_last", [1, 0, -2])
def test_case_16_keep_last_under_2_is_refused(tmp_path: Path, keep_last: int) -> None:
    with pytest.raises(ValueError, match="2 or more"):
        save(tmp_path, 1, keep_last=keep_last)
    assert list(tmp_path.iterdir()) == []


def test_keep_last_none_keeps_all(tmp_path: Path) -> None:
    for epoch in range(7):
        save(tmp_path, epoch, keep_last=None)
    assert good_epochs(tmp_path) == list(range(7))


def test_case_18_the_best_outlives_the_last_k(tmp_path: Path) -> None:
    """Also where the names, rounded to four places, show no difference."""
    for epoch, loss in enumerate([0.5, 0.12344, 0.12341, 0.12343, 0.7, 0.8, 0.9]):
        save(tmp_path, epoch, loss=loss, keep_last=2)
    assert good_epochs(tmp_path) == [2, 5, 6]


def test_an_unreadable_file_is_not_deleted_and_counts_for_nothing(
    tmp_path: Path,
) -> None:
    """It may be the user's only trace; and it must not push out a good one."""
    damaged = save(tmp_path, 1, loss=0.001)  # by its name the best
    damaged.write_bytes(damaged.read_bytes()[:-30])
    for epoch, loss in ((2, 0.5), (3, 0.6), (4, 0.7), (5, 0.8)):
        save(tmp_path, epoch, loss=loss, keep_last=2)
    newest = tmp_path / "checkpoint_model_6_0.9000_none.pt"
    newest.write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(tmp_path, 6, loss=0.95, keep_last=2)
    left = names(tmp_path)
    assert damaged.name in left
    assert newest.name in left
    assert [name.split("_")[2] for name in left] == ["1", "2", "5", "6", "6"]
    with pytest.warns(UserWarning, match=newest.name):
        assert load_checkpoint(tmp_path, model=MODEL)["loss"] == 0.95


def test_the_file_just_saved_stays_and_later_epochs_are_warned_of(
    tmp_path: Path,
) -> None:
    """A run begun anew in an old run's folder."""
    for epoch in (48, 49, 50):
        save(tmp_path, epoch)
    with pytest.warns(UserWarning, match=r"holds epoch 50.*new folder") as seen:
        file = save_checkpoint(tmp_path, epoch=1, model=MODEL)
    assert seen[0].filename == __file__, "the warning points elsewhere"
    assert file.exists()
    assert good_epochs(tmp_path) == [1, 48, 49, 50]


@pytest.mark.parametrize("deletes", [True, False], ids=["", "deletes_fail"])
@pytest.mark.parametrize("losses", [[0.3, 0.2, 0.4], [0.2, 0.4, 0.3], [0.5, 0.5, 0.5]])
def test_case_43_the_same_epoch_saved_again_the_later_wins(
    tmp_path: Path, losses: list[float], deletes: bool
) -> None:
    """Always: also when older files of the epoch stay, and time stamps lie."""

    def fail(operation: str, _: int) -> OSError | None:
        return None if deletes or operation != "delete" else OSError(5, "no")

    model = nn.Linear(2, 2)
    for turn, loss in enumerate(losses):
        with Disk(fail).under(tmp_path), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(tmp_path, 5, loss=loss, extra={"turn": turn})
        for age, file in enumerate(list_checkpoints(tmp_path)):
            os.utime(file, (1e9 - age, 1e9 - age))
        assert load_checkpoint(tmp_path, model=model)["extra"] == {"turn": turn}
    if deletes:
        assert len(names(tmp_path)) <= 2  # the last, and the best if it is another
        assert f"checkpoint_model_5_{min(losses):.4f}_none.pt" in names(tmp_path)
