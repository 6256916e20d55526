"""A folder of your own photos, one subfolder a class: checked, then loaded."""

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2


class PhotosError(ValueError):
    """The folder can't be trained on; the message says what to do."""


@dataclass
class Photos:
    """What `check_image_folder` found: class -> good files, and bad file -> reason."""

    classes: dict[str, list[Path]]
    skipped: dict[Path, str]


def check_image_folder(folder: str | Path) -> Photos:
    """Open every file of `folder/<class>/`, and say which are no good and why.

    Hidden files and folders, such as `.DS_Store` and `.ipynb_checkpoints`, are passed
    over without a word.

    Raises:
        FileNotFoundError: no such folder.
        PhotosError: fewer than two classes, or a class without one good image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there, or is not a folder")
    names = visible_folders(folder)
    found = Photos({name: [] for name in names}, {})
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        inside = file.relative_to(folder).parts
        if any(part.startswith(".") for part in inside):
            continue
        reason = broken(file) if len(inside) > 1 else "is in no class's folder"
        if reason:
            found.skipped[file] = reason
        else:
            found.classes[inside[0]].append(file)
    if len(names) < 2:
        raise PhotosError(
            f"{folder} holds {len(names)} class folders {names}, and it takes two or "
            "more, each named after a class, with its images inside"
        )
    if empty := [name for name in names if not found.classes[name]]:
        reasons = "; ".join(
            f"{file.name} {why}"
            for file, why in found.skipped.items()
            if file.relative_to(folder).parts[0] in empty
        )
        raise PhotosError(
            f"no good image for {empty} in {folder}. {reasons or 'It is empty.'}"
        )
    return found


def visible_folders(folder: Path) -> list[str]:
    return sorted(
        f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")
    )


def broken(file: Path) -> str | None:
    """Why the file can't be used as an image, or None; reads all of it."""
    try:
        open_photo(file)
    except UnidentifiedImageError:
        return (
            "is not an image, or of a kind that PIL does not read (HEIC: save as JPEG)"
        )
    except Exception as error:  # PIL's plugins raise many kinds
        return f"is a broken image: {error}"
    return None


def open_photo(file: str | Path) -> Image.Image:
    """The image in RGB, turned upright as its camera noted (ImageFolder's is not)."""
    with Image.open(file) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


class PhotoFolder(ImageFolder):
    """torchvision's ImageFolder over the good images that `check_image_folder` found.

    Gives `(transform(image), class number)`; `classes` holds the names in order.
    """

    def __init__(
        self, folder: str | Path, transform: Callable[[Image.Image], Any] | None = None
    ) -> None:
        found = check_image_folder(folder)
        good = {file for files in found.classes.values() for file in files}
        super().__init__(
            str(folder),
            transform,
            loader=open_photo,
            is_valid_file=lambda file: Path(file) in good,
        )
        self.skipped = found.skipped

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = visible_folders(Path(directory))  # ImageFolder's: hidden ones as well
        return names, {name: number for number, name in enumerate(names)}


def draw_shapes(folder: str | Path, per_class: int = 30, seed: int = 0) -> Path:
    """Draw pictures to practise on: `circle/` and `triangle/`, PNG, 96x96.

    Size, place, turn and colours are random; shape and background always differ.
    """
    folder, rng = Path(folder), random.Random(seed)
    for name, corners in (("circle", 40), ("triangle", 3)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            paper = [rng.randrange(256) for _ in range(3)]
            ink = [(value + rng.randrange(64, 193)) % 256 for value in paper]
            image = Image.new("RGB", (96, 96), tuple(paper))
            x, y, radius = rng.uniform(38, 58), rng.uniform(38, 58), rng.uniform(20, 36)
            turn = rng.uniform(0, 2 * math.pi)
            angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
            points = [
                (x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles
            ]
            ImageDraw.Draw(image).polygon(points, fill=tuple(ink))
            image.save(folder / name / f"{name}_{number:03d}.png")
    return folder


def split_photos(folder: str | Path, size: int) -> tuple[Subset, Subset, int]:
    """Photos to train on, a fifth to validate on, and the number of classes.

    The split is at random and always the same. Images are float32 (3, size, size) in
    0..1; those to train on are cut out at random, anew each time.

    Raises:
        As `check_image_folder`.
    """
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    train = PhotoFolder(folder, v2.Compose([v2.RandomResizedCrop(size), *end]))
    val = copy.copy(train)  # the files are not checked a second time
    val.transform = v2.Compose([v2.Resize((size, size)), *end])
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    fifth = -(-len(order) // 5)
    chosen, rest = order[:fifth].tolist(), order[fifth:].tolist()
    return Subset(train, rest), Subset(val, chosen), len(train.classes)
