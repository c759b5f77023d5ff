import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nvae.data import folder as folder_module
from nvae.data.folder import load_folder
from nvae.errors import UserError


@pytest.fixture
def image_folder(tmp_path):
    """A folder of forty images of one color each, some in a subfolder, and two files that are not images."""
    folder = tmp_path / "image_folder"
    (folder / "more").mkdir(parents=True)
    for i in range(40):
        where = folder / "more" if i % 4 == 0 else folder
        Image.new("RGB", (12, 10), (i, 2 * i, 3 * i)).save(where / f"{i}.png")
    (folder / "readme.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image")
    return folder


@pytest.fixture
def load(make_config):
    def load(path, **changes):
        return load_folder(make_config(dataset={"name": "folder", "path": str(path)} | changes))

    return load


def colors(images):
    return {tuple(image[:, 4, 4].tolist()) for image in images}


def test_folder_parts_are_disjoint_and_complete(image_folder, load):
    data = load(image_folder)
    assert data.training.dtype == torch.uint8
    assert data.training.shape[1:] == (3, 8, 8)
    assert colors(data.training) | colors(data.validation) == {(i, 2 * i, 3 * i) for i in range(40)}
    assert not colors(data.training) & colors(data.validation)
    assert data.warnings == ()


def test_folder_split_is_stable_when_images_are_added(image_folder, load):
    before = load(image_folder, validation_fraction=0.3)
    for i in range(40, 50):
        Image.new("RGB", (9, 9), (i, 2 * i, 3 * i)).save(image_folder / f"{i}.png")
    after = load(image_folder, validation_fraction=0.3)
    assert colors(before.training) < colors(after.training)
    assert colors(before.validation) <= colors(after.validation)
    assert before.fingerprint != after.fingerprint


def test_folder_fingerprint_does_not_depend_on_its_path(image_folder, load, tmp_path):
    before = load(image_folder)
    moved = image_folder.rename(tmp_path / "moved")
    assert load(moved).fingerprint == before.fingerprint


def test_folder_of_two_images_fills_both_parts(tmp_path, load):
    for fraction in (0.01, 0.99):
        for name in "ab":
            Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        data = load(tmp_path, validation_fraction=fraction)
        assert (len(data.training), len(data.validation)) == (1, 1)


def test_folder_images_are_center_cropped(tmp_path, load):
    stripes = np.zeros((16, 48, 3), np.uint8)
    stripes[:, 16:32] = 255
    for name in "ab":
        Image.fromarray(stripes).save(tmp_path / f"{name}.png")
    assert (load(tmp_path).training >= 235).all()  # the filter's support reaches into the cropped part


def test_folder_transparency_is_composited_on_white(tmp_path, load):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    half.save(tmp_path / "half.png")
    data = load(tmp_path)
    assert sorted(torch.cat([data.training, data.validation])[:, 0, 0, 0].tolist()) == [127, 255]


@pytest.mark.parametrize("mode", ["L", "P", "LA", "CMYK", "1", "I;16"])
def test_folder_reads_every_mode(tmp_path, load, mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 100 * 256, np.uint16))
    else:
        image = Image.new("L", (8, 8), 100).convert(mode)
    for name in "ab":
        image.save(tmp_path / f"{name}.tif")
    data = load(tmp_path)
    assert data.warnings == ()
    expected = {"1": (0, 255), "CMYK": (99, 100, 101)}.get(mode, (100,))
    assert set(data.training.flatten().tolist()) <= set(expected)


def test_folder_applies_the_exif_orientation(tmp_path, load):
    upper_half_white = np.zeros((8, 8, 3), np.uint8)
    upper_half_white[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for name in "ab":
        Image.fromarray(upper_half_white).save(tmp_path / f"{name}.png", exif=exif)
    image = load(tmp_path).training[0]
    assert image[:, 0].max() < 20
    assert image[:, -1].min() > 235


def test_folder_converts_to_one_channel(image_folder, make_config):
    data = load_folder(make_config(image_channels=1, dataset={"path": str(image_folder)}))
    assert data.training.shape[1:] == (1, 8, 8)


def test_folder_names_unreadable_files_in_a_warning(image_folder, load):
    whole = (image_folder / "1.png").read_bytes()
    (image_folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    (image_folder / "fake.jpg").write_text("hello")
    data = load(image_folder)
    assert len(data.training) + len(data.validation) == 40
    (warning,) = data.warnings
    assert all(part in warning for part in ("2 of 42", "broken.png", "fake.jpg"))


def test_folder_follows_links_in_a_circle(image_folder, tmp_path, load):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (8, 8), (255, 255, 255)).save(outside / "one.png")
    (image_folder / "link").symlink_to(outside)
    (image_folder / "more" / "circle").symlink_to(image_folder)
    data = load(image_folder)
    assert len(data.training) + len(data.validation) == 41


@pytest.mark.parametrize(("content", "count"), [({}, 0), ({"notes.txt": "hello"}, 0), ({"a.png": "broken"}, 1)])
def test_folder_with_too_few_files_is_refused(tmp_path, load, content, count):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{count} images"):
        load(tmp_path)


def test_folder_of_unreadable_files_is_refused(tmp_path, load):
    for name in "abc":
        (tmp_path / f"{name}.png").write_text("hello")
    with pytest.raises(UserError, match="0 of 3"):
        load(tmp_path)


def test_missing_folder_is_refused(tmp_path, load):
    with pytest.raises(UserError, match=r"nowhere.*dataset\.path"):
        load(tmp_path / "nowhere")


def test_folder_larger_than_the_memory_limit_is_mapped_and_reused(image_folder, load, monkeypatch):
    small = load(image_folder)
    monkeypatch.setattr(folder_module, "MEMORY_LIMIT", 1000)
    first = load(image_folder)
    assert first.fingerprint == small.fingerprint
    monkeypatch.setattr(folder_module, "fit", None)  # reading an image again would fail
    assert load(image_folder).fingerprint == small.fingerprint
    assert list(image_folder.glob(".pixels_*.npy"))


def test_folder_without_space_for_the_mapped_file_is_refused(image_folder, load, monkeypatch):
    monkeypatch.setattr(folder_module, "MEMORY_LIMIT", 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    before = sorted(image_folder.iterdir())
    with pytest.raises(UserError, match="space") as raised:
        load(image_folder)
    assert raised.value.__cause__.disk_full
    assert sorted(image_folder.iterdir()) == before
