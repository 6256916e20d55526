"""The digits: 1,797 real handwritten digits, bundled in data/digits.npz."""

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

DATA = Path(__file__).resolve().parent.parent / "data"
DIGITS = DATA / "digits.npz"
DIGITS_SHA256 = "5181e701d4c4c0e6263c40e72164468ade1daa851f1b401d0686a0d67a9e5245"
SPLITS = ("train", "val", "test")


class Digits(Dataset):
    """Handwritten digits as `(image, label)`.

    image: float32 (3, 32, 32) in 0..1, three equal channels; label: int 0..9.
    `images` (N, 1, 32, 32) and `labels` (N,) hold all of them as tensors.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index].expand(3, -1, -1), int(self.labels[index])


def load_digits(split: str) -> Digits:
    """One split of the digits: "train" (1,000), "val" (397) or "test" (400).

    The splits are disjoint and fixed, each with the ten classes in equal shares. The
    images are stored as 8x8 and enlarged to 32x32 (bilinear) when read. Source and
    licence: data/README.md.

    Raises:
        ValueError: another split's name, or a damaged file.
        FileNotFoundError: data/digits.npz is not there.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}: choose one of {', '.join(SPLITS)}")
    try:
        raw = DIGITS.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{DIGITS} is not there. It comes with the course: "
            "git checkout data/digits.npz"
        ) from error
    if hashlib.sha256(raw).hexdigest() != DIGITS_SHA256:
        raise ValueError(
            f"{DIGITS} is damaged (its SHA-256 differs from the one in {__name__}). "
            "Bring it back with: git checkout data/digits.npz"
        )
    with np.load(io.BytesIO(raw)) as stored:
        chosen = stored["split"] == SPLITS.index(split)
        pixels, labels = stored["images"][chosen], stored["labels"][chosen]
    small = torch.from_numpy(pixels).float().unsqueeze(1) / 16  # (N, 1, 8, 8), 0..1
    images = interpolate(small, size=(32, 32), mode="bilinear")  # (N, 1, 32, 32)
    return Digits(images, torch.from_numpy(labels).long())
