"""data/emoji, and the tool that writes it."""

import io
import json
import tarfile

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from tools import make_emoji
from tools.make_emoji import CLASSES, EMOJI, LEFT_OUT, chosen, on_white, write


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), colour).save(buffer, "png")
    return buffer.getvalue()


def entry(name, subcategory, order, **others):
    return {
        "short_name": name,
        "subcategory": subcategory,
        "sort_order": order,
        "image": f"{name}.png",
        "unified": "1F408",
        "has_img_google": True,
    } | others


LISTED = [
    entry("cat", "animal-mammal", 2),
    entry("ant", "animal-bug", 1),
    entry("black_cat", "animal-mammal", 3, unified="1F408-200D-2B1B"),
    entry("feather", "animal-bird", 4),
    entry("new_animal", "animal-mammal", 5, has_img_google=False),
    entry("apple", "food-fruit", 6),
    entry("tea", "drink", 7),
    entry("teapot", "drink", 8),
    entry("car", "transport-ground", 9),
    entry("womens", "transport-sign", 10),
]


def test_what_is_bundled_is_an_image_folder():
    folder = ImageFolder(EMOJI)
    assert folder.classes == list(CLASSES)
    counts = [folder.targets.count(label) for label in range(3)]
    assert counts == [117, 118, 55]
    for file, _ in folder.samples:
        with Image.open(file) as picture:
            assert (picture.size, picture.mode, picture.format) == (
                (64, 64),
                "RGB",
                "PNG",
            )


def test_no_picture_is_there_twice():
    pixels = [Image.open(file).tobytes() for file, _ in ImageFolder(EMOJI).samples]
    assert len(set(pixels)) == len(pixels)


def test_nothing_left_out_is_bundled():
    for name, left_out in LEFT_OUT.items():
        bundled = {file.stem for file in (EMOJI / name).iterdir()}
        assert not bundled & set(left_out.split())


def test_which_are_chosen():
    assert list(chosen(LISTED, "animal")) == ["ant", "cat"]
    assert chosen(LISTED, "food") == {"apple": "apple.png", "tea": "tea.png"}
    assert list(chosen(LISTED, "vehicle")) == ["car"]


def test_white_behind_what_is_transparent():
    assert on_white(png((255, 0, 0, 0))).getpixel((3, 3)) == (255, 255, 255)
    assert on_white(png((255, 0, 0, 255))).getpixel((3, 3)) == (255, 0, 0)


def test_it_writes_from_an_archive_of_the_right_version(tmp_path, monkeypatch):
    archive = tmp_path / "emoji.tgz"
    files = {"package/emoji.json": json.dumps(LISTED).encode()}
    for listed in LISTED:
        files[f"package/img/google/64/{listed['image']}"] = png((0, 0, 255, 255))
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"not emoji-datasource-google 16\.0\.0"):
        write(archive, tmp_path / "out")
    digest = make_emoji.hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(make_emoji, "SHA256", digest)
    assert write(archive, tmp_path / "out") == 5
    written = {str(f.relative_to(tmp_path / "out")) for f in tmp_path.rglob("*.png")}
    assert written == {
        "animal/ant.png",
        "animal/cat.png",
        "food/apple.png",
        "food/tea.png",
        "vehicle/car.png",
    }
