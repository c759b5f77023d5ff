import numpy as np
import pytest
import torch
from PIL import Image

from nvae.data.image_files import read_image_files
from nvae.errors import UserError

ORIENTATION = 0x0112
TURNED = {  # what each orientation says that the camera did
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture
def read(make_config):
    """A function: pictures as a model sees them, and the notices."""

    def read(*paths, **changes):
        return read_image_files(paths, make_config(**changes), "cpu")

    return read


@pytest.fixture
def saved(tmp_path):
    """A function: the path of a saved picture."""

    def save(image, name="a.png", **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_a_picture_of_the_models_kind_stays_as_it_is(read, saved):
    pixels = noise(8, 8, 3)
    images, notices = read(saved(Image.fromarray(pixels)))
    assert images.dtype == torch.float32
    assert torch.equal(images[0], torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    assert notices == []


def test_a_grey_picture_of_a_grey_model_stays_as_it_is(read, saved):
    pixels = noise(8, 8)
    images, notices = read(saved(Image.fromarray(pixels)), image_channels=1)
    assert torch.equal(images, torch.from_numpy(pixels)[None, None] / 255)
    assert notices == []


def test_pictures_come_in_the_order_that_is_given(read, saved):
    paths = [saved(Image.new("RGB", (8, 8), (shade, 0, 0)), f"{name}.png") for name, shade in (("b", 51), ("a", 102))]
    images, notices = read(*paths)
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([0.2, 0.4]))
    assert notices == []


def test_a_large_picture_is_made_small(read, saved):
    pixels = noise(2, 2, 3).repeat(16, 0).repeat(16, 1)  # four squares of 16 x 16
    path = saved(Image.fromarray(pixels))
    images, notices = read(path)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)[:, ::4, ::4] / 255
    corners = images[0][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, expected[:, [0, 0, -1, -1], [0, -1, 0, -1]], rtol=0, atol=0.03)
    assert notices == [f"{path} (32 x 32): resized to 8 x 8, as the model wants it"]


def test_a_small_picture_is_made_large(read, saved):
    images, notices = read(saved(Image.new("RGB", (5, 5), (51, 102, 153))))
    torch.testing.assert_close(images, torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 8, 8))
    assert "(5 x 5): resized to 8 x 8," in notices[0]


def test_the_middle_of_a_wide_picture_is_kept(read, saved):
    pixels = noise(8, 14, 3)
    images, (notice,) = read(saved(Image.fromarray(pixels)))
    assert torch.equal(images[0], torch.from_numpy(pixels[:, 3:11]).permute(2, 0, 1) / 255)
    assert "(14 x 8): cut to a square, as" in notice


def test_the_middle_of_a_high_picture_is_kept_and_resized(read, saved):
    _, (notice,) = read(saved(Image.fromarray(noise(32, 16, 3))))
    assert "(16 x 32): cut to a square, resized to 8 x 8, as" in notice


def test_color_turns_grey_by_its_brightness(read, saved):
    path = saved(Image.new("RGB", (8, 8), (200, 100, 50)))
    images, (notice,) = read(path, image_channels=1)
    expected = torch.full((1, 1, 8, 8), (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255)
    torch.testing.assert_close(images, expected, rtol=0, atol=1 / 255)
    assert notice == f"{path} (8 x 8): turned gray, as the model wants it"


def test_grey_turns_into_color(read, saved):
    pixels = noise(8, 8)
    images, (notice,) = read(saved(Image.fromarray(pixels)))
    assert torch.equal(images[0], torch.from_numpy(pixels).expand(3, -1, -1) / 255)
    assert "turned from gray into color" in notice


@pytest.mark.parametrize("bits", [1, 16])
def test_grey_of_any_depth_is_grey(read, saved, bits):
    shades = noise(8, 8) > 100 if bits == 1 else noise(8, 8).astype(np.uint16) * 257
    images, notices = read(saved(Image.fromarray(shades)), image_channels=1)
    expected = torch.from_numpy(shades.astype(np.float32) / (2**bits - 1))
    torch.testing.assert_close(images[0, 0], expected, rtol=0, atol=1e-6)
    assert notices == []


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_laid_on_white(read, saved, mode):
    image = Image.new(mode, (8, 8), (0, 0, 0, 255) if mode == "RGBA" else (0, 255))
    image.putalpha(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4))
    images, (notice,) = read(saved(image), image_channels=1 if mode == "LA" else 3)
    expected = 1 - torch.arange(64).view(8, 8) * 4 / 255
    torch.testing.assert_close(images[0], expected.expand_as(images[0]), rtol=0, atol=1 / 255)
    assert "(8 x 8): laid on white, as" in notice


def test_a_picture_that_is_transparent_nowhere_is_not_laid_on_white(read, saved):
    pixels = noise(8, 8, 4)
    pixels[..., 3] = 255
    images, notices = read(saved(Image.fromarray(pixels)))
    assert torch.equal(images[0], torch.from_numpy(pixels[..., :3]).permute(2, 0, 1) / 255)
    assert notices == []


@pytest.mark.parametrize("orientation", TURNED)
def test_a_picture_is_turned_upright_as_its_camera_says(read, saved, orientation):
    upright = Image.fromarray(noise(8, 8, 3))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lying = upright.transpose(TURNED[orientation])
    images, _ = read(saved(lying, exif=exif))
    assert torch.equal(images[0], torch.from_numpy(np.array(upright)).permute(2, 0, 1) / 255)


def test_the_size_in_a_notice_is_that_of_the_upright_picture(read, saved):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    _, (notice,) = read(saved(Image.new("RGB", (30, 20)), exif=exif))
    assert "(20 x 30): turned upright, cut to a square, resized to 8 x 8, as" in notice


def test_everything_that_was_done_is_one_notice_a_picture(read, saved):
    first = saved(Image.new("LA", (30, 20)), "first.png")
    second = saved(Image.new("RGB", (8, 8)), "second.png")
    third = saved(Image.new("RGB", (9, 9)), "third.png")
    _, notices = read(first, second, third)
    assert notices == [
        f"{first} (30 x 20): cut to a square, resized to 8 x 8, laid on white, turned from gray into color, as the "
        "model wants it",
        f"{third} (9 x 9): resized to 8 x 8, as the model wants it",
    ]


def test_pictures_have_the_bits_of_the_model(read, saved):
    pixels = noise(8, 8, 3)
    images, notices = read(saved(Image.fromarray(pixels)), pixel_bits=5)
    assert torch.equal(images[0], torch.from_numpy(pixels // 8).permute(2, 0, 1) / 31)
    assert notices == []


@pytest.mark.parametrize("kind", ["missing", "text", "cut off", "empty"])
def test_a_picture_that_cannot_be_read_is_one_sentence_that_names_it(read, saved, tmp_path, kind):
    good, bad = saved(Image.new("RGB", (8, 8)), "good.png"), tmp_path / "bad picture.jpg"
    if kind == "text":
        bad.write_text("hello")
    elif kind == "empty":
        bad.write_bytes(b"")
    elif kind == "cut off":
        Image.fromarray(noise(100, 100, 3)).save(bad)
        bad.write_bytes(bad.read_bytes()[:4000])
    expected = (
        "there is no picture '.*bad picture.jpg'" if kind == "missing" else "picture '.*bad picture.jpg' cannot be"
    )
    with pytest.raises(UserError, match=expected) as error:
        read(good, bad)
    assert "good.png" not in str(error.value)


def test_a_folder_is_no_picture(read, tmp_path):
    with pytest.raises(UserError, match=f"'{tmp_path}' is a folder; give the pictures in it"):
        read(tmp_path)
