"""helpers.photos: what is wrong with a folder of photos is named."""

import shutil

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from helpers.photos import (
    PhotoFolder,
    PhotosError,
    check_image_folder,
    draw_shapes,
    split_photos,
)

to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


@pytest.fixture
def folder(tmp_path):
    return draw_shapes(tmp_path / "photos", per_class=4)


def test_a_good_folder(folder):
    found = check_image_folder(folder)
    assert {name: len(files) for name, files in found.classes.items()} == {
        "circle": 4,
        "triangle": 4,
    }
    assert found.skipped == {}
    photos = PhotoFolder(folder, to_tensor)
    assert photos.classes == ["circle", "triangle"]
    assert photos.targets == [0] * 4 + [1] * 4
    image, label = photos[-1]
    assert image.shape == (3, 96, 96)
    assert 0 <= image.min() < image.max() <= 1
    assert label == 1


def test_the_pictures_are_the_same_each_time(folder, tmp_path):
    again = draw_shapes(tmp_path / "again", per_class=4)
    for file in folder.rglob("*.png"):
        assert file.read_bytes() == (again / file.relative_to(folder)).read_bytes()


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        check_image_folder(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder(folder):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        check_image_folder(folder / "circle" / "circle_000.png")


def test_an_empty_folder(tmp_path):
    with pytest.raises(PhotosError, match=r"holds 0 class folders \[\].*two or more"):
        check_image_folder(tmp_path)


def test_one_class_only(folder):
    shutil.rmtree(folder / "circle")
    with pytest.raises(PhotosError, match=r"holds 1 class folders \['triangle'\]"):
        check_image_folder(folder)


def test_an_empty_class(folder):
    (folder / "square").mkdir()
    with pytest.raises(PhotosError, match=r"no good image for \['square'\].*is empty"):
        check_image_folder(folder)


def test_an_empty_class_is_not_blamed_on_another_ones_file(folder):
    (folder / "square").mkdir()
    (folder / "circle" / "notes.txt").write_text("my notes")
    with pytest.raises(PhotosError, match="It is empty") as caught:
        check_image_folder(folder)
    assert "notes.txt" not in str(caught.value)


def test_a_class_of_broken_images_only(folder):
    (folder / "square").mkdir()
    (folder / "square" / "one.png").write_bytes(b"")
    with pytest.raises(PhotosError, match=r"\['square'\].*one\.png is not an image"):
        check_image_folder(folder)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zeros(file):
    raw = file.read_bytes()
    file.write_bytes(raw[:60] + bytes(len(raw) - 60))


def text(file):
    file.write_text("not an image")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [(cut, "is a broken image"), (zeros, "broken image"), (text, "is not an image")],
)
def test_bad_files_are_named_and_skipped(folder, damage, reason, suffix):
    bad = folder / "circle" / f"bad.{suffix}"
    noise = (torch.rand(64, 64, 3) * 255).byte().numpy()
    Image.fromarray(noise).save(bad)
    assert check_image_folder(folder).skipped == {}
    damage(bad)
    if damage is zeros and suffix == "jpg":
        reason = "image"  # which of the two depends on the headers that are left
    photos = PhotoFolder(folder, to_tensor)
    assert list(photos.skipped) == [bad]
    assert reason in photos.skipped[bad]
    assert len(photos) == 8
    assert sum(1 for _ in photos) == 8, "every one that is left can be read"


def test_an_image_outside_the_classes(folder):
    shutil.copy(folder / "circle" / "circle_000.png", folder / "lost.png")
    found = check_image_folder(folder)
    assert found.skipped == {folder / "lost.png": "is in no class's folder"}


def test_hidden_files_and_folders(folder):
    """Jupyter and macOS leave them; ImageFolder would take the folder for a class."""
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "circle" / ".DS_Store").write_bytes(b"\0")
    assert check_image_folder(folder).skipped == {}
    assert PhotoFolder(folder).classes == ["circle", "triangle"]


def test_folders_in_a_class(folder):
    (folder / "circle" / "more").mkdir()
    file = folder / "circle" / "circle_000.png"
    file.rename(folder / "circle" / "more" / "deep.png")
    assert len(check_image_folder(folder).classes["circle"]) == 4
    assert PhotoFolder(folder).targets.count(0) == 4


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA", "I;16"])
def test_every_mode_becomes_three_channels(folder, mode):
    image = Image.new(mode, (40, 30))
    image.save(folder / "circle" / ("a.tiff" if mode == "CMYK" else "a.png"))
    photos = PhotoFolder(folder, to_tensor)
    assert photos.skipped == {}
    assert photos[0][0].shape == (3, 30, 40)


def test_a_photo_that_the_camera_noted_as_turned(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    Image.new("RGB", (40, 30)).save(folder / "circle" / "a.jpg", exif=exif)
    assert PhotoFolder(folder, to_tensor)[0][0].shape == (3, 40, 30)


def test_strings_as_paths(folder):
    assert len(PhotoFolder(str(folder))) == 8
    assert len(PhotoFolder(f"{folder}/")) == 8


def test_a_relative_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert len(PhotoFolder("photos")) == 8
    assert len(PhotoFolder("./photos/")) == 8
    monkeypatch.chdir(folder)
    assert len(PhotoFolder(".")) == 8


def test_split_photos_is_disjoint_fixed_and_varies_the_photos_to_train_on(tmp_path):
    folder = draw_shapes(tmp_path / "shapes", per_class=10)
    train, val, num_classes = split_photos(folder, 32)
    assert (len(train), len(val), num_classes) == (16, 4, 2)
    assert sorted([*train.indices, *val.indices]) == list(range(20))
    assert split_photos(folder, 32)[1].indices == val.indices
    (image, label), (again, _) = train[0], train[0]
    assert (image.shape, image.dtype) == ((3, 32, 32), torch.float32)
    assert 0 <= image.min() <= image.max() <= 1
    assert label in (0, 1)
    assert not torch.equal(image, again)
    assert torch.equal(val[0][0], val[0][0])
