import numpy as np
import pytest
import torch
from PIL import Image

from nvae.data import folder as folder_module
from nvae.data.folder import load_folder
from nvae.errors import UserError


@pytest.fixture
def pictures(tmp_path):
    """Forty pictures of one color each, some in a subfolder, and a file that is no picture."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for i in range(40):
        where = folder / "more" if i % 4 == 0 else folder
        Image.new("RGB", (12, 10), (i, 2 * i, 3 * i)).save(where / f"{i}.png")
    (folder / "readme.txt").write_text("not a picture")
    (folder / ".hidden.png").write_text("not a picture either")
    return folder


@pytest.fixture
def load(make_config):
    def load(path, **changes):
        return load_folder(make_config(dataset={"name": "folder", "path": str(path)} | changes))

    return load


def colors(images):
    return {tuple(image[:, 4, 4].tolist()) for image in images}


def test_every_picture_is_in_one_part(pictures, load):
    data = load(pictures)
    assert data.training.dtype == torch.uint8
    assert data.training.shape[1:] == (3, 8, 8)
    assert colors(data.training) | colors(data.validation) == {(i, 2 * i, 3 * i) for i in range(40)}
    assert not colors(data.training) & colors(data.validation)
    assert data.notices == ()


def test_a_new_picture_moves_no_other_one(pictures, load):
    before = load(pictures, validation_fraction=0.3)
    for i in range(40, 50):
        Image.new("RGB", (9, 9), (i, 2 * i, 3 * i)).save(pictures / f"{i}.png")
    after = load(pictures, validation_fraction=0.3)
    assert colors(before.training) < colors(after.training)
    assert colors(before.validation) <= colors(after.validation)
    assert before.fingerprint != after.fingerprint


def test_the_same_folder_elsewhere_is_the_same_data_set(pictures, load, tmp_path):
    before = load(pictures)
    moved = pictures.rename(tmp_path / "moved")
    assert load(moved).fingerprint == before.fingerprint


def test_even_two_pictures_make_both_parts(tmp_path, load):
    for fraction in (0.01, 0.99):
        for name in "ab":
            Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        data = load(tmp_path, validation_fraction=fraction)
        assert (len(data.training), len(data.validation)) == (1, 1)


def test_the_middle_is_kept_and_the_shorter_side_fits(tmp_path, load):
    stripes = np.zeros((16, 48, 3), np.uint8)
    stripes[:, 16:32] = 255
    for name in "ab":
        Image.fromarray(stripes).save(tmp_path / f"{name}.png")
    assert (load(tmp_path).training >= 235).all()  # the filter sees a little of what is cut off


def test_transparency_lies_on_white(tmp_path, load):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    half.save(tmp_path / "half.png")
    data = load(tmp_path)
    assert sorted(torch.cat([data.training, data.validation])[:, 0, 0, 0].tolist()) == [127, 255]


@pytest.mark.parametrize("mode", ["L", "P", "LA", "CMYK", "1", "I;16"])
def test_every_kind_of_picture_is_read(tmp_path, load, mode):
    if mode == "I;16":
        picture = Image.fromarray(np.full((8, 8), 100 * 256, np.uint16))
    else:
        picture = Image.new("L", (8, 8), 100).convert(mode)
    for name in "ab":
        picture.save(tmp_path / f"{name}.tif")
    data = load(tmp_path)
    assert data.notices == ()
    expected = {"1": (0, 255), "CMYK": (99, 100, 101)}.get(mode, (100,))
    assert set(data.training.flatten().tolist()) <= set(expected)


def test_pictures_are_turned_as_the_camera_says(tmp_path, load):
    upper_half_white = np.zeros((8, 8, 3), np.uint8)
    upper_half_white[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for name in "ab":
        Image.fromarray(upper_half_white).save(tmp_path / f"{name}.png", exif=exif)
    image = load(tmp_path).training[0]
    assert image[:, 0].max() < 20
    assert image[:, -1].min() > 235


def test_one_channel_models_get_grey_pictures(pictures, make_config):
    data = load_folder(make_config(image_channels=1, dataset={"path": str(pictures)}))
    assert data.training.shape[1:] == (1, 8, 8)


def test_unreadable_pictures_are_named_counted_and_left_out(pictures, load):
    whole = (pictures / "1.png").read_bytes()
    (pictures / "broken.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "fake.jpg").write_text("hello")
    data = load(pictures)
    assert len(data.training) + len(data.validation) == 40
    (notice,) = data.notices
    assert "2 of 42 pictures cannot be read" in notice
    assert "broken.png" in notice
    assert "fake.jpg" in notice


def test_links_are_followed_even_in_a_circle(pictures, tmp_path, load):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (8, 8), (255, 255, 255)).save(outside / "one.png")
    (pictures / "link").symlink_to(outside)
    (pictures / "more" / "circle").symlink_to(pictures)
    data = load(pictures)
    assert len(data.training) + len(data.validation) == 41


def test_a_missing_folder_is_one_sentence(tmp_path, load):
    with pytest.raises(UserError, match=r"'.*nowhere' does not exist; put pictures into it"):
        load(tmp_path / "nowhere")


def test_a_folder_without_pictures_is_one_sentence(tmp_path, load):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="holds 0 pictures, subfolders included; put at least two into it"):
        load(tmp_path)


def test_a_folder_of_broken_pictures_is_one_sentence(tmp_path, load):
    for name in "abc":
        (tmp_path / f"{name}.png").write_text("hello")
    with pytest.raises(UserError, match="of 3 pictures .* only 0 can be read"):
        load(tmp_path)


def test_a_large_folder_is_kept_in_a_file_and_found_again(pictures, load, monkeypatch):
    small = load(pictures)
    monkeypatch.setattr(folder_module, "MEMORY_LIMIT", 1000)
    first = load(pictures)
    assert first.fingerprint == small.fingerprint
    monkeypatch.setattr(folder_module, "fit", None)  # reading a picture again would fail
    assert load(pictures).fingerprint == small.fingerprint
    assert list(pictures.glob(".pixels_*.npy"))
