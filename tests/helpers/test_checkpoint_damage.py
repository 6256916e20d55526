"""Files that are damaged, foreign or malicious: an error, and never a wrong value."""

import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_support import Training, fingerprint, good_epochs, strays
from torch import nn

from helpers.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from helpers.models import SmallCNN


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good checkpoint of a small training, about 40 kB."""
    training = Training().train(1, 1)
    folder = tmp_path_factory.mktemp("whole")
    return save_checkpoint(folder, epoch=1, **training.parts(), loss=0.5, acc=0.5)


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged, under its own name."""
    copy = tmp_path / whole.name
    copy.write_bytes(whole.read_bytes())
    return copy


def assert_refused_untouched(file: Path) -> None:
    """Reading and loading raise, and what a load was given is as it was."""
    training = Training(seed=3)
    before = training.state()
    with pytest.raises(CheckpointError):
        read_checkpoint(file)
    with pytest.raises(CheckpointError):
        load_checkpoint(file, **training.parts())
    assert training.state() == before


def test_case_21_empty_file(damaged: Path) -> None:
    damaged.write_bytes(b"")
    assert_refused_untouched(damaged)


def test_case_22_truncated_at_30_places(whole: Path, damaged: Path) -> None:
    raw, draw = whole.read_bytes(), random.Random(22)
    ends = [1, 30, 100, len(raw) // 2, len(raw) - 100, len(raw) - 22, len(raw) - 1]
    ends += [draw.randrange(1, len(raw)) for _ in range(30 - len(ends))]
    for end in ends:
        damaged.write_bytes(raw[:end])
        assert_refused_untouched(damaged)
    assert len(ends) == 30


def test_case_23_300_random_bit_flips(whole: Path, damaged: Path) -> None:
    """No flip is loaded as another value; 200 anywhere, 100 in the zip's own tables."""
    raw, draw = whole.read_bytes(), random.Random(23)
    right = fingerprint(read_checkpoint(whole))
    tables = zipfile.ZipFile(whole).start_dir
    bits = [draw.randrange(8 * len(raw)) for _ in range(200)]
    bits += [draw.randrange(8 * tables, 8 * len(raw)) for _ in range(100)]
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
    assert refused >= 60, "the flips hit nothing"
    assert wrong_in_torch >= 20, "torch.load notices now: testzip may be superfluous"


def test_case_24_zeroed_page_and_swapped_blocks(whole: Path, damaged: Path) -> None:
    raw, draw, done = whole.read_bytes(), random.Random(24), 0
    while done < 20:
        changed, size = bytearray(raw), 512 if done % 2 else 4096
        a, b = (draw.randrange(len(raw) // size) * size for _ in range(2))
        if done % 2:
            changed[a : a + size], changed[b : b + size] = (
                raw[b:][:size],
                raw[a:][:size],
            )
        else:
            changed[a : a + size] = bytes(size)
        if bytes(changed) != raw:
            assert len(changed) == len(raw)
            damaged.write_bytes(changed)
            try:
                same = read_checkpoint(damaged)
            except CheckpointError:
                done += 1
            else:  # nothing but padding between the records was changed
                assert fingerprint(same) == fingerprint(read_checkpoint(whole))


def test_case_25_valid_zip_with_a_record_missing(whole: Path, damaged: Path) -> None:
    source, right = zipfile.ZipFile(whole), fingerprint(read_checkpoint(whole))
    needed = 0
    for missing in source.namelist():
        with zipfile.ZipFile(damaged, "w") as target:
            for name in source.namelist():
                if name != missing:
                    target.writestr(name, source.read(name))
        assert zipfile.ZipFile(damaged).testzip() is None, "not a valid zip: no test"
        if "/data" in missing and "serialization_id" not in missing:
            needed += 1
            assert_refused_untouched(damaged)
        else:
            try:
                assert fingerprint(read_checkpoint(damaged)) == right
            except CheckpointError:
                needed += 1
    assert needed > 10


class Payload:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))


class OsPayload(Payload):
    def __reduce__(self) -> tuple:
        import os

        return (os.system, (f"touch '{self.mark}'",))


@pytest.mark.parametrize(
    "make",
    [
        lambda file: file.write_text("<!DOCTYPE html><title>Sign in</title>"),
        lambda file: file.write_bytes(random.Random(26).randbytes(50_000)),
        lambda file: file.write_bytes(b"PK\x03\x04" + bytes(500)),
        lambda file: file.write_bytes(pickle.dumps({"format_version": 1})),
        lambda file: torch.save(
            {"epoch": 1}, file, _use_new_zipfile_serialization=False
        ),
        lambda file: torch.save({"epoch": 1}, file),
        lambda file: torch.save([1], file),
        lambda file: torch.jit.script(nn.Linear(2, 2)).save(str(file)),
        lambda file: zipfile.ZipFile(file, "w").writestr("hello.txt", "hello"),
    ],
    ids=[
        "html",
        "random",
        "zip_head",
        "pickle",
        "legacy",
        "foreign",
        "list",
        "torchscript",
        "other_zip",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_case_26_other_things_under_the_name(damaged: Path, make: object) -> None:
    damaged.unlink()
    made = make(damaged)
    del made
    assert damaged.stat().st_size
    assert_refused_untouched(damaged)


def three_epochs(folder: Path) -> tuple[Training, list[Path]]:
    training, files = Training(), []
    for epoch in (1, 2, 3):
        training.train(epoch, epoch)
        files.append(save_checkpoint(folder, epoch=epoch, **training.parts()))
    return training, files


@pytest.mark.parametrize("bad", [1, 2])
def test_case_27_newest_corrupt_the_one_before_is_loaded_with_a_warning(
    tmp_path: Path, bad: int
) -> None:
    _, files = three_epochs(tmp_path)
    for file in files[-bad:]:
        raw = bytearray(file.read_bytes())
        raw[raw.index(b"model_state_dict")] ^= 16
        file.write_bytes(raw)
    training = Training(seed=3)
    with pytest.warns(UserWarning, match="is passed over") as seen:
        epoch = load_checkpoint(tmp_path, **training.parts())["epoch"]
    assert epoch == 3 - bad
    text = "\n".join(str(warning.message) for warning in seen)
    assert [file.name in text for file in files] == [i >= 3 - bad for i in range(3)]
    assert all(warning.filename == __file__ for warning in seen)
    expected = read_checkpoint(files[2 - bad])["model_state_dict"]
    assert fingerprint(training.model.state_dict()) == fingerprint(expected)
    with pytest.raises(CheckpointError):  # a file that was named raises
        load_checkpoint(files[-1], **training.parts())


def test_case_28_all_corrupt_the_model_is_untouched(tmp_path: Path) -> None:
    _, files = three_epochs(tmp_path)
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    training = Training(seed=3)
    before = training.state()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(CheckpointError, match="no good checkpoint") as error:
            load_checkpoint(tmp_path, **training.parts())
    assert len(seen) == 3
    assert all(file.name in str(error.value) for file in files)
    assert training.state() == before


@pytest.mark.parametrize("name", ["2_0.5000_0.5000", "1_0.4000_0.5000", "1_none_nan"])
def test_case_29_name_and_content_disagree(damaged: Path, name: str) -> None:
    renamed = damaged.rename(damaged.parent / f"checkpoint_model_{name}.pt")
    with pytest.raises(CheckpointError, match=damaged.name):
        read_checkpoint(renamed)
    assert_refused_untouched(renamed)


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_case_30_unknown_format_version(damaged: Path, version: object) -> None:
    content = torch.load(damaged, weights_only=True)
    torch.save({**content, "format_version": version}, damaged)
    with pytest.raises(CheckpointError, match=f"format version {version}"):
        read_checkpoint(damaged)
    assert_refused_untouched(damaged)


@pytest.mark.parametrize("part", ["loss", "forms", "model_state_dict", "epoch"])
def test_a_dict_that_lacks_a_part_is_no_checkpoint(damaged: Path, part: str) -> None:
    """Somebody's own dict may have a format_version, too."""
    content = torch.load(damaged, weights_only=True)
    del content[part]
    torch.save(content, damaged)
    assert_refused_untouched(damaged)
    with pytest.raises(CheckpointError, match=part):
        read_checkpoint(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(2, 6):  # a save's retention leaves it alone, and goes on
            save_checkpoint(damaged.parent, epoch=epoch, model=nn.Linear(2, 2))
    assert damaged.exists()
    others = list_checkpoints(damaged.parent)[1:]
    assert [read_checkpoint(file)["epoch"] for file in others] == [3, 4, 5]


def test_an_error_without_words_is_named(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise EOFError

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(CheckpointError, match=r"can't be read: EOFError"):
        read_checkpoint(damaged)


@pytest.mark.parametrize("payload", [Payload, OsPayload])
@pytest.mark.parametrize("force", [False, True], ids=["", "forced"])
def test_case_31_malicious_pickle_is_refused_and_not_run(
    damaged: Path, payload: type, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the environment switches torch.load's default back to unsafe."""
    if force:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark = damaged.parent / "ran"
    content = torch.load(damaged, weights_only=True)
    torch.save({**content, "extra": {"x": payload(mark)}}, damaged)
    list_checkpoints(damaged.parent)
    with pytest.raises(CheckpointError, match="can run any code"):
        read_checkpoint(damaged)
    assert_refused_untouched(damaged)
    for epoch in range(2, 6):  # retention reads it, too
        save_checkpoint(damaged.parent, epoch=epoch, model=nn.Linear(2, 2))
    assert damaged.exists()
    assert not mark.exists()
    torch.load(damaged, weights_only=False)
    assert mark.exists(), "the payload is dead: the test shows nothing"


def test_case_32_whole_model_file_is_refused_with_advice(damaged: Path) -> None:
    torch.save(SmallCNN(), damaged)
    with pytest.raises(CheckpointError, match=r"whole model.*weights_only=False"):
        read_checkpoint(damaged)
    assert_refused_untouched(damaged)


def test_the_record_is_named(whole: Path, damaged: Path) -> None:
    """The error of a flipped bit says where it is."""
    info = next(i for i in zipfile.ZipFile(whole).infolist() if "/data/0" in i.filename)
    raw = bytearray(whole.read_bytes())
    lengths = struct.unpack("<HH", raw[info.header_offset + 26 :][:4])
    raw[info.header_offset + 30 + sum(lengths)] ^= 1
    damaged.write_bytes(raw)
    with pytest.raises(CheckpointError, match="data/0"):
        read_checkpoint(damaged)
    assert torch.load(damaged, weights_only=True), "torch.load alone notices now"
    assert strays(damaged.parent) == []
    assert good_epochs(whole.parent) == [1]
