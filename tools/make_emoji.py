"""Write data/emoji/{animal,food,vehicle}/*.png from the pictures of Noto Emoji.

    npm pack emoji-datasource-google@16.0.0      # 74 MB, in a folder outside the course
    python -m tools.make_emoji emoji-datasource-google-16.0.0.tgz [FOLDER]

Each picture is 64x64, with white behind it, and named after the emoji's short name.
Left out are parts of animals, things beside the road, vessels without food, and
pictures that are another one in other colours ("black_cat"): such a twin among the test
pictures would make a task look easier than it is.
"""

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

from PIL import Image

from helpers.data import DATA

EMOJI = DATA / "emoji"
# Of the archive that the registry gives for version 16.0.0
SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
# Class -> how the names of its subcategories begin
CLASSES = {
    "animal": ("animal-",),
    "food": ("food-", "drink"),
    "vehicle": ("transport-air", "transport-ground", "transport-water"),
}
LEFT_OUT = {
    "animal": "pig_nose feet feather wing shell coral spider_web microbe",
    "food": "baby_bottle teapot pouring_liquid ice_cube",
    "vehicle": "station busstop motorway railway_track oil_drum fuelpump wheel "
    "rotating_light traffic_light vertical_traffic_light octagonal_sign construction "
    "anchor ring_buoy parachute seat roller_skate",
}
JOINER = "-200D-"  # in "cat + black square", which is the cat in black


def chosen(emoji: list[dict], name: str) -> dict[str, str]:
    """Short name -> picture's file, of one class's emoji, in Unicode's order.

    Args:
        emoji: the content of the archive's emoji.json.
        name: a key of CLASSES.
    """
    return {
        e["short_name"]: e["image"]
        for e in sorted(emoji, key=lambda e: e["sort_order"])
        if e["subcategory"].startswith(CLASSES[name])
        and e["has_img_google"]
        and JOINER not in e["unified"]
        and e["short_name"] not in LEFT_OUT[name].split()
    }


def on_white(png: bytes) -> Image.Image:
    """The picture in RGB, with white where it is transparent."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def write(archive: Path, folder: Path = EMOJI) -> int:
    """Write the pictures; returns how many.

    Raises:
        ValueError: the archive is not version 16.0.0's.
    """
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{archive} is not emoji-datasource-google 16.0.0")
    written = 0
    with tarfile.open(archive) as tar:
        emoji = json.load(tar.extractfile("package/emoji.json"))
        for name in CLASSES:
            (folder / name).mkdir(parents=True, exist_ok=True)
            for short_name, file in chosen(emoji, name).items():
                png = tar.extractfile(f"package/img/google/64/{file}").read()
                target = folder / name / f"{short_name}.png"
                on_white(png).save(target, optimize=True)
                written += 1
    return written


if __name__ == "__main__":
    print(write(*map(Path, sys.argv[1:])), "pictures")
