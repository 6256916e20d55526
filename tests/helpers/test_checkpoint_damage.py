"""Files that are damaged, foreign or malicious: an error, and never a wrong value."""

import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_support import Run, fingerprint, flip_a_bit, unreadable
from torch import nn

from helpers.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from helpers.models import SmallCNN

FLIPS = int(os.environ.get("CHECKPOINT_FLIPS", "200"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good checkpoint of a small run, about 20 kB."""
    folder = tmp_path_factory.mktemp("whole")
    return save_checkpoint(folder, epoch=1, **Run().train(1).parts(), loss=0.5, acc=0.5)


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged, under its own name."""
    copy = tmp_path / whole.name
    copy.write_bytes(whole.read_bytes())
    return copy


def assert_refused_untouched(file: Path, match: str = "no good checkpoint") -> None:
    """Reading and loading raise, and what a load was given is as it was."""
    run = Run(seed=3)
    before = run.state()
    with pytest.raises(CheckpointError, match=match):
        read_checkpoint(file)
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(file, **run.parts())
    assert run.state() == before


def test_an_empty_file_and_one_truncated_at_30_places(
    whole: Path, damaged: Path
) -> None:
    raw, draw = whole.read_bytes(), random.Random(22)
    ends = [0, 1, 30, len(raw) // 2, len(raw) - 22, len(raw) - 1]
    for end in ends + [draw.randrange(1, len(raw)) for _ in range(25)]:
        damaged.write_bytes(raw[:end])
        assert_refused_untouched(damaged)


def test_random_bit_flips_never_give_another_value(whole: Path, damaged: Path) -> None:
    """Two thirds anywhere, one third in the zip's own tables."""
    raw, draw = whole.read_bytes(), random.Random(23)
    right = fingerprint(read_checkpoint(whole))
    tables = zipfile.ZipFile(whole).start_dir
    bits = [draw.randrange(8 * len(raw)) for _ in range(FLIPS * 2 // 3)]
    bits += [draw.randrange(8 * tables, 8 * len(raw)) for _ in range(FLIPS // 3)]
    refused = silent = wrong_in_torch = 0
    for bit in bits:
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(flipped)
        try:
            silent += fingerprint(read_checkpoint(damaged)) != right
        except CheckpointError:
            refused += 1
        try:
            content = torch.load(damaged, weights_only=True)
            wrong_in_torch += fingerprint(content) != right
        except Exception:
            pass
    print(
        f"{len(bits)} flips: {refused} refused, {silent} silently wrong, "
        f"{len(bits) - refused - silent} harmless; torch.load alone: {wrong_in_torch} "
        "silently wrong"
    )
    assert silent == 0
    assert refused >= len(bits) // 5, "the flips hit nothing"


def flag_as_a_folder(file: Path) -> None:
    """Flip the bit in the zip's table that makes a folder of the first tensor."""
    raw = bytearray(file.read_bytes())
    entry = raw.rindex(b"PK\x01\x02", 0, raw.rindex(b"data/0"))
    raw[entry + 38] ^= 16
    file.write_bytes(raw)


def test_a_tensor_that_is_flagged_as_a_folder(damaged: Path) -> None:
    """No CRC covers the flag; torch.load gives memory that nobody has written to."""
    flag_as_a_folder(damaged)
    assert zipfile.ZipFile(damaged).testzip() is None
    assert_refused_untouched(damaged, "data/0")


@pytest.mark.upstream
@pytest.mark.parametrize("harm", [flip_a_bit, flag_as_a_folder])
def test_torch_load_does_not_notice_a_flipped_bit(
    damaged: Path, harm: Callable
) -> None:
    """If it does one day, the helper's own checks are superfluous: pytorch#126952."""
    harm(damaged)
    torch.load(damaged, weights_only=True)


def test_zeroed_pages_and_swapped_blocks(whole: Path, damaged: Path) -> None:
    raw, draw, refused = whole.read_bytes(), random.Random(24), 0
    right = fingerprint(read_checkpoint(whole))
    for turn in range(40):
        changed, size = bytearray(raw), 512
        a, b = (draw.randrange(len(raw) // size) * size for _ in range(2))
        if turn % 2:
            changed[a : a + size] = bytes(size)
        else:
            changed[a : a + size] = raw[b : b + size]
            changed[b : b + size] = raw[a : a + size]
        damaged.write_bytes(changed)
        try:  # what is changed may be padding between the records
            assert fingerprint(read_checkpoint(damaged)) == right
        except CheckpointError:
            refused += 1
    assert refused >= 20


def test_a_valid_zip_with_a_record_missing(whole: Path, damaged: Path) -> None:
    source, right = zipfile.ZipFile(whole), fingerprint(read_checkpoint(whole))
    needed = 0
    for missing in source.namelist():
        with zipfile.ZipFile(damaged, "w") as target:
            for name in source.namelist():
                if name != missing:
                    target.writestr(name, source.read(name))
        assert zipfile.ZipFile(damaged).testzip() is None, "not a valid zip: no test"
        try:
            assert fingerprint(read_checkpoint(damaged)) == right
        except CheckpointError:
            assert_refused_untouched(damaged)
            needed += 1
    assert needed > 10


OTHERS: dict[str, Callable[[Path], object]] = {
    "html": lambda file: file.write_text("<!DOCTYPE html><title>Sign in</title>"),
    "random": lambda file: file.write_bytes(random.Random(26).randbytes(50_000)),
    "zip head": lambda file: file.write_bytes(b"PK\x03\x04" + bytes(500)),
    "pickle": lambda file: file.write_bytes(pickle.dumps({"format_version": 2})),
    "legacy": lambda file: torch.save(
        {"epoch": 1}, file, _use_new_zipfile_serialization=False
    ),
    "foreign": lambda file: torch.save({"epoch": 1}, file),
    "list": lambda file: torch.save([1], file),
    "tensor": lambda file: torch.save(torch.zeros(3), file),
    "torchscript": lambda file: torch.jit.script(nn.Linear(2, 2)).save(str(file)),
    "other zip": lambda file: zipfile.ZipFile(file, "w").writestr("a.txt", "hello"),
    "whole model": lambda file: torch.save(SmallCNN(), file),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.filterwarnings("ignore")
def test_other_things_under_the_name(damaged: Path, kind: str) -> None:
    damaged.unlink()
    OTHERS[kind](damaged)
    assert damaged.stat().st_size
    assert_refused_untouched(damaged, damaged.name)


def test_an_unknown_format_version_and_a_missing_part(damaged: Path) -> None:
    content = torch.load(damaged, weights_only=True)
    for version in (1, 3, "2", None):
        torch.save({**content, "format_version": version}, damaged)
        assert_refused_untouched(damaged, f"format version {version}")
    for part in content.keys() - {"format_version", "epoch"}:
        torch.save({key: content[key] for key in content if key != part}, damaged)
        run = Run(seed=3)
        before = run.state()
        with pytest.raises(CheckpointError, match=part):
            load_checkpoint(damaged, **run.parts())
        assert run.state() == before


def test_a_renamed_file_of_another_epoch(damaged: Path) -> None:
    renamed = damaged.rename(damaged.parent / "checkpoint_model_2_0.5000_0.5000.pt")
    assert_refused_untouched(renamed, "holds epoch 1")


class Payload:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch '{self.mark}'",))


@pytest.mark.parametrize("force", ["0", "1"], ids=["", "forced"])
def test_a_malicious_pickle_is_refused_and_not_run(
    damaged: Path, force: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the environment switches torch.load's default back to unsafe."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    mark = damaged.parent / "ran"
    content = torch.load(damaged, weights_only=True)
    torch.save({**content, "extra": {"x": Payload(mark)}}, damaged)
    assert_refused_untouched(damaged, "system")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for epoch in range(2, 6):  # retention reads it, too
            save_checkpoint(damaged.parent, epoch=epoch, model=nn.Linear(2, 2))
    assert damaged.exists()
    assert not mark.exists()
    torch.load(damaged, weights_only=False)
    assert mark.exists(), "the payload is dead: the test shows nothing"


# --- folders


@pytest.mark.parametrize("bad", [0, 1, 2, 3])
def test_a_folder_gives_the_newest_good_one_and_warns_of_the_others(
    tmp_path: Path, bad: int
) -> None:
    run, files = Run(), []
    for epoch in (1, 2, 3):
        run.train(1)
        files.append(save_checkpoint(tmp_path, epoch=epoch, **run.parts()))
    for file in files[3 - bad :]:
        flip_a_bit(file)
    assert unreadable(tmp_path) == files[3 - bad :]
    other = Run(seed=3)
    before = other.state()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if bad < 3:
            assert load_checkpoint(tmp_path, **other.parts())["epoch"] == 3 - bad
            good = read_checkpoint(files[2 - bad])["model_state_dict"]
            assert fingerprint(other.model.state_dict()) == fingerprint(good)
        else:
            with pytest.raises(CheckpointError, match=files[-1].name):
                load_checkpoint(tmp_path, **other.parts())
            assert other.state() == before
    assert [str(w.message).split()[0] for w in seen] == [
        file.name for file in reversed(files[3 - bad :])
    ]
    assert {w.filename for w in seen} <= {__file__}, "the warning points elsewhere"


def test_a_missing_file_and_an_empty_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.pt"):
        with pytest.raises(FileNotFoundError, match=path.name):
            load_checkpoint(str(path), model=nn.Linear(2, 2))
        assert list_checkpoints(str(path)) == []
    with pytest.raises(FileNotFoundError):
        read_checkpoint(str(tmp_path / "none.pt"))
    assert [*tmp_path.iterdir()] == []
