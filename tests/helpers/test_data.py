"""helpers.data, data/digits.npz and the tool that writes it."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from helpers import data
from helpers.data import DIGITS, DIGITS_SHA256, SPLITS, load_digits

SIZES = {"train": 1000, "val": 397, "test": 400}
FIRST_LABELS = {
    "train": [0, 4, 5, 6, 8, 9, 0, 1, 3, 4, 6, 7],
    "val": [1, 2, 3, 7, 2, 5, 9, 0, 4, 7, 0, 2],
    "test": [1, 4, 8, 6, 5, 9, 9, 1, 3, 2, 2, 2],
}


def pixels(split: str) -> list[bytes]:
    """Each image of a split as it is stored: 64 bytes, and its label."""
    loaded = load_digits(split)
    rows = 16 * small(loaded.images)
    assert torch.equal(rows, rows.round())
    return [
        row.numpy().tobytes() + bytes([label])
        for row, label in zip(rows.to(torch.uint8), loaded.labels, strict=True)
    ]


def small(images: torch.Tensor) -> torch.Tensor:
    """The 8x8 pixels (N, 64) behind enlarged ones (N, 1, 32, 32).

    Enlarging is linear and loses nothing: least squares gives the pixels back.
    """
    basis = torch.nn.functional.interpolate(
        torch.eye(64).reshape(64, 1, 8, 8), size=(32, 32), mode="bilinear"
    ).reshape(64, 1024)
    solution = torch.linalg.lstsq(
        basis.T.double(), images.reshape(-1, 1024).T.double()
    ).solution
    return ((solution.T * 16).round() / 16).float()


def test_the_checksum():
    assert hashlib.sha256(DIGITS.read_bytes()).hexdigest() == DIGITS_SHA256
    assert DIGITS.is_relative_to(Path(data.__file__).parent.parent)


def test_all_of_scikit_learns_digits_and_nothing_else():
    load = pytest.importorskip("sklearn.datasets").load_digits
    digits = load()
    theirs = [
        image.astype(np.uint8).tobytes() + bytes([label])
        for image, label in zip(digits.images, digits.target, strict=True)
    ]
    splits = {split: pixels(split) for split in SPLITS}
    assert {split: len(rows) for split, rows in splits.items()} == SIZES
    ours = [row for rows in splits.values() for row in rows]
    assert sorted(ours) == sorted(theirs)
    assert len(theirs) == len(set(theirs)) == 1797, "so the splits have none in common"


def test_the_splits_are_fixed():
    """The first labels of each split, as they have been since the file was made."""
    first = {split: load_digits(split).labels[:12].tolist() for split in SPLITS}
    assert first == FIRST_LABELS
    assert torch.equal(load_digits("train").images, load_digits("train").images)


def test_equal_shares_of_the_classes():
    counts = {s: torch.bincount(load_digits(s).labels, minlength=10) for s in SPLITS}
    total = sum(counts.values())
    for split, count in counts.items():
        assert count.sum() == SIZES[split]
        wanted = total * SIZES[split] / 1797
        assert (count - wanted).abs().max() <= 1.5


@pytest.mark.parametrize("split", SPLITS)
def test_a_sample(split):
    digits = load_digits(split)
    assert len(digits) == SIZES[split]
    assert digits.images.shape == (SIZES[split], 1, 32, 32)
    assert digits.images.dtype == torch.float32
    assert digits.labels.dtype == torch.long
    assert digits.images.min() == 0.0
    assert digits.images.max() == 1.0
    assert digits.labels.unique().tolist() == list(range(10))
    image, label = digits[5]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    assert type(label) is int
    assert label == digits.labels[5]
    for channel in image:
        assert torch.equal(channel, digits.images[5, 0])


def test_the_end_is_an_end():
    digits = load_digits("val")
    assert torch.equal(digits[-1][0], digits[len(digits) - 1][0])
    with pytest.raises(IndexError):
        digits[len(digits)]
    assert sum(1 for _ in digits) == len(digits)


def test_a_sample_can_not_change_the_data_by_accident():
    digits = load_digits("val")
    before = digits.images.clone()
    with pytest.raises(RuntimeError):
        digits[0][0].add_(1.0)
    assert torch.equal(digits.images, before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader(workers):
    digits = load_digits("test")
    loader = DataLoader(digits, batch_size=128, num_workers=workers)
    images, labels = zip(*loader, strict=True)
    assert [len(batch) for batch in labels] == [128, 128, 128, 16]
    assert torch.equal(torch.cat(labels), digits.labels)
    assert torch.equal(torch.cat(images), digits.images.expand(-1, 3, -1, -1))
    assert labels[0].dtype == torch.long


@pytest.mark.parametrize("split", ["dev", "", "Train", None, 0, ["train"]])
def test_an_unknown_split(split):
    with pytest.raises(ValueError, match="choose one of train, val, test"):
        load_digits(split)


def test_a_missing_file(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "DIGITS", tmp_path / "digits.npz")
    with pytest.raises(FileNotFoundError, match=r"git checkout data/digits\.npz"):
        load_digits("train")


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def flip(raw: bytes) -> bytes:
    return raw[:5000] + bytes([raw[5000] ^ 1]) + raw[5001:]


@pytest.mark.parametrize("damage", [cut, flip, lambda raw: b"", lambda raw: b"<html>"])
def test_a_damaged_file(monkeypatch, tmp_path, damage):
    file = tmp_path / "digits.npz"
    file.write_bytes(damage(DIGITS.read_bytes()))
    monkeypatch.setattr(data, "DIGITS", file)
    with pytest.raises(ValueError, match=r"damaged.*git checkout data/digits\.npz"):
        load_digits("train")


def test_the_tool_writes_the_same_file_again(tmp_path):
    pytest.importorskip("sklearn")
    from tools.make_digits import write

    write(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == DIGITS.read_bytes()


def test_the_file_needs_no_pickle():
    with np.load(DIGITS, allow_pickle=False) as stored:
        kinds = {name: (stored[name].dtype, stored[name].shape) for name in stored}
    assert kinds == {
        "images": (np.uint8, (1797, 8, 8)),
        "labels": (np.uint8, (1797,)),
        "split": (np.uint8, (1797,)),
    }


def test_the_readme_beside_the_file_tells_the_truth():
    text = (DIGITS.parent / "README.md").read_text()
    assert DIGITS_SHA256 in text
    for split in SPLITS:
        counts = torch.bincount(load_digits(split).labels, minlength=10).tolist()
        row = [len(load_digits(split)), *counts]
        found = re.search(rf"^\| {split} \|(.*)\|$", text, re.MULTILINE)
        assert found, split
        assert [int(cell) for cell in found[1].replace(",", "").split("|")] == row
