import numpy as np
import pytest
import torch
from PIL import Image

from nvae.data.pictures.image_files import read_image_files
from nvae.system.errors import UserError

ORIENTATION = 0x0112
TRANSPOSED = {  # EXIF orientation: what the camera did to the upright image
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
    """A function: image files as a model's input, and the sentences on changes."""

    def read(*paths, **keys):
        return read_image_files(paths, make_config(**keys), "cpu")

    return read


@pytest.fixture
def saved(tmp_path):
    """A function: the path of a saved image."""

    def save(image, name="a.png", **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("channels", "shape"), [(3, (8, 8, 3)), (1, (8, 8))])
def test_read_image_files_keeps_an_image_that_fits(read, saved, channels, shape):
    array = noise(*shape)
    images, changes = read(saved(Image.fromarray(array)), image_channels=channels)
    assert images.dtype == torch.float32
    expected = torch.from_numpy(array.reshape(8, 8, channels)).permute(2, 0, 1) / 255
    assert torch.equal(images[0], expected)
    assert changes == []


def test_read_image_files_keeps_the_order_and_accepts_strings(read, saved, config):
    paths = [saved(Image.new("RGB", (8, 8), (shade, 0, 0)), f"{name}.png") for name, shade in (("b", 51), ("a", 102))]
    images, changes = read(*map(str, paths))
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([0.2, 0.4]))
    assert changes == []
    for path in (paths[1], str(paths[1])):  # a single path
        assert torch.equal(read_image_files(path, config, "cpu")[0], images[1:])


def test_read_image_files_downsamples(read, saved):
    array = noise(2, 2, 3).repeat(16, 0).repeat(16, 1)  # four squares of 16 x 16
    images, (change,) = read(saved(Image.fromarray(array)))
    expected = torch.from_numpy(array).permute(2, 0, 1)[:, ::4, ::4] / 255
    corners = images[0][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, expected[:, [0, 0, -1, -1], [0, -1, 0, -1]], rtol=0, atol=0.03)
    assert "a.png" in change and "8 x 8" in change


def test_read_image_files_upsamples(read, saved):
    images, (change,) = read(saved(Image.new("RGB", (5, 5), (51, 102, 153))))
    torch.testing.assert_close(images, torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 8, 8))
    assert "8 x 8" in change


def test_read_image_files_crops_the_center(read, saved):
    array = noise(8, 14, 3)
    images, (change,) = read(saved(Image.fromarray(array)))
    assert torch.equal(images[0], torch.from_numpy(array[:, 3:11]).permute(2, 0, 1) / 255)
    assert "square" in change


def test_read_image_files_converts_color_to_luma(read, saved):
    images, (change,) = read(saved(Image.new("RGB", (8, 8), (200, 100, 50))), image_channels=1)
    expected = torch.full((1, 1, 8, 8), (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255)
    torch.testing.assert_close(images, expected, rtol=0, atol=1 / 255)
    assert "to grayscale" in change


def test_read_image_files_repeats_grayscale_as_color(read, saved):
    array = noise(8, 8)
    images, (change,) = read(saved(Image.fromarray(array)))
    assert torch.equal(images[0], torch.from_numpy(array).expand(3, -1, -1) / 255)
    assert "to color" in change


def test_read_image_files_keeps_black_and_white(read, saved):
    shades = noise(8, 8) > 100
    images, changes = read(saved(Image.fromarray(shades)), image_channels=1)
    assert torch.equal(images[0, 0], torch.from_numpy(shades).float())
    assert changes == []


def test_read_image_files_scales_deep_pictures_by_their_range(read, saved):
    shades = noise(8, 8).astype(np.uint16) * 13 + 200
    images, (change,) = read(saved(Image.fromarray(shades)), image_channels=1)
    values = shades.astype(np.float64)
    expected = (values - values.min()) / (values.max() - values.min())
    torch.testing.assert_close(images[0, 0].double(), torch.from_numpy(expected), rtol=0, atol=0.5 / 255 + 1e-6)
    assert "a.png" in change and "8 bits" in change


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_read_image_files_composites_transparency_on_white(read, saved, mode):
    image = Image.new(mode, (8, 8), (0, 0, 0, 255) if mode == "RGBA" else (0, 255))
    image.putalpha(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4))
    images, (change,) = read(saved(image), image_channels=1 if mode == "LA" else 3)
    expected = 1 - torch.arange(64).view(8, 8) * 4 / 255
    torch.testing.assert_close(images[0], expected.expand_as(images[0]), rtol=0, atol=1 / 255)
    assert "white" in change


def test_read_image_files_reports_no_change_for_an_opaque_alpha_channel(read, saved):
    array = noise(8, 8, 4)
    array[..., 3] = 255
    images, changes = read(saved(Image.fromarray(array)))
    assert torch.equal(images[0], torch.from_numpy(array[..., :3]).permute(2, 0, 1) / 255)
    assert changes == []


@pytest.mark.parametrize("orientation", TRANSPOSED)
def test_read_image_files_applies_the_exif_orientation(read, saved, orientation):
    upright = Image.fromarray(noise(8, 8, 3))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    images, _ = read(saved(upright.transpose(TRANSPOSED[orientation]), exif=exif))
    assert torch.equal(images[0], torch.from_numpy(np.array(upright)).permute(2, 0, 1) / 255)


def test_read_image_files_reports_one_line_per_kind_of_change(read, saved):
    """67 resized files give one line (fault 14)."""
    paths = [saved(Image.new("RGB", (9, 9)), f"{i}.png") for i in range(66)]
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    paths.append(saved(Image.new("LA", (30, 20)), "other.png", exif=exif))
    images, changes = read(*paths, saved(Image.new("RGB", (8, 8))))
    assert len(images) == 68 and len(changes) == 5
    (resized,) = (change for change in changes if "8 x 8" in change)
    assert resized.startswith("67 images")
    assert sum("other.png" in change for change in changes) == 4  # rotated, cropped, on white, to color


def test_read_image_files_applies_pixel_bits(read, saved):
    array = noise(8, 8, 3)
    images, changes = read(saved(Image.fromarray(array)), pixel_bits=5)
    assert torch.equal(images[0], torch.from_numpy(array // 8).permute(2, 0, 1) / 31)
    assert changes == []
    images, _ = read(saved(Image.fromarray(array)), pixel_bits=5, encoder_bits=8)  # they are for the encoder
    assert torch.equal(images[0], torch.from_numpy(array).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("kind", ["missing", "text", "cut off", "empty", "folder"])
def test_read_image_files_names_the_file_that_cannot_be_read(read, saved, tmp_path, kind):
    good, bad = saved(Image.new("RGB", (8, 8)), "good.png"), tmp_path / "bad image.jpg"
    if kind == "text":
        bad.write_text("hello")
    elif kind == "empty":
        bad.write_bytes(b"")
    elif kind == "folder":
        bad.mkdir()
    elif kind == "cut off":
        Image.fromarray(noise(100, 100, 3)).save(bad)
        bad.write_bytes(bad.read_bytes()[:4000])
    with pytest.raises(UserError, match=r"bad image\.jpg") as error:
        read(good, bad)
    assert "good.png" not in str(error.value)


def test_read_image_files_refuses_an_empty_list(read):
    with pytest.raises(UserError):
        read()
