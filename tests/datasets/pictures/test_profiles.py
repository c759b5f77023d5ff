"""Color profiles: pictures of other color spaces become sRGB, in training and in reconstruction."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from nvae.data.loaders.folder import load_folder
from nvae.data.pictures.conversion import fit
from nvae.data.pictures.image_files import read_image_files
from nvae.data.pictures.profiles import ProfileError, profile_transform

SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]])  # to XYZ, D50
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
GAMMA = 563 / 256  # as a profile can hold it


def profile(space, tags):
    """A profile of version 2 (ICC.1:2001-04): a color space and tags, bytes by signature."""
    place, table, content = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", place + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    pcs, kind = (b"Lab ", b"prtr") if space == b"CMYK" else (b"XYZ ", b"mntr")
    white = struct.pack(">3i", 63190, 65536, 54061)
    header = struct.pack(">I4sI4s4s4s", place + len(content), b"none", 0x02100000, kind, space, pcs) + bytes(12)
    header += b"acsp" + bytes(28) + white
    return header.ljust(128, b"\0") + table + content


def xyz(values):
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


CURVE = b"curv" + bytes(4) + struct.pack(">IH", 1, round(GAMMA * 256))


def rgb_profile(matrix):
    columns = {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), matrix.T, strict=True)}
    return profile(b"RGB ", columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), CURVE))


def gray_profile():
    return profile(b"GRAY", {b"wtpt": xyz((0.9642, 1, 0.8249)), b"kTRC": CURVE})


def cmyk_profile():
    """Lightness falls linearly with black alone; the other inks are invisible."""
    ramp = bytes(range(256))
    corners = b"".join(bytes([0 if corner & 1 else 255, 128, 128]) for corner in range(16))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * ramp + corners + 3 * ramp
    return profile(b"CMYK", {b"A2B0": table, b"wtpt": xyz((0.9642, 1, 0.8249))})


def expected_srgb(colors, matrix):
    """8-bit sRGB values (N, 3) of colors (N, 3) with GAMMA and these primaries, those outside of sRGB clipped."""
    linear = np.clip((colors / 255) ** GAMMA @ (np.linalg.inv(SRGB) @ matrix).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def stored(image, icc, format="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format, icc_profile=icc)
    return Image.open(io.BytesIO(buffer.getvalue()))


COLORS = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("matrix", [DISPLAY_P3, SRGB[:, ::-1]], ids=["Display P3", "red and blue exchanged"])
def test_fit_converts_colors_to_srgb(mode, matrix):
    image = Image.fromarray(COLORS)
    image = image.quantize(64) if mode == "P" else image.convert(mode)
    used = np.asarray(image.convert("RGB")).reshape(-1, 3)
    pixels = fit(stored(image, rgb_profile(matrix)), 8, 3).reshape(3, -1).T
    np.testing.assert_allclose(pixels, expected_srgb(used, matrix), atol=2.5)


def test_fit_keeps_transparency_with_a_profile():
    image = Image.fromarray(COLORS).convert("RGBA")
    image.putalpha(Image.fromarray((np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)))
    pixels = fit(stored(image, rgb_profile(DISPLAY_P3)), 8, 3)
    clear = np.indices((8, 8)).sum(0) % 2 == 0
    assert (pixels[:, clear] == 255).all()
    expected = expected_srgb(COLORS[~clear], DISPLAY_P3)
    np.testing.assert_allclose(pixels[:, ~clear].T, expected, atol=2.5)


@pytest.mark.parametrize("mode", ["L", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_fit_converts_gray_tones_to_those_of_srgb(mode, channels):
    ramp = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    pixels = fit(stored(Image.fromarray(ramp).convert(mode), gray_profile()), 8, channels)
    expected = expected_srgb(np.repeat(ramp.reshape(-1, 1), 3, 1), SRGB)
    np.testing.assert_allclose(pixels.reshape(channels, -1), np.repeat(expected.T[:1], channels, 0), atol=1.5)


def test_fit_converts_cmyk_by_its_profile():
    black = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    inks = np.stack([black[::-1], 0 * black, 0 * black, black], -1)
    pixels = fit(stored(Image.fromarray(inks, "CMYK"), cmyk_profile(), "TIFF"), 8, 3)
    lightness = 100 * (1 - black / 255.0)
    y = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    expected = 255 * np.where(y <= 0.0031308, 12.92 * y, 1.055 * y ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, (3, 8, 8)), atol=3)


@pytest.mark.parametrize("icc", [None, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()])
def test_srgb_needs_no_conversion(icc):
    image = stored(Image.fromarray(COLORS), icc)
    assert profile_transform(image) is None
    np.testing.assert_array_equal(fit(image, 8, 3).transpose(1, 2, 0), COLORS)


@pytest.mark.parametrize(
    ("mode", "icc"),
    [("RGB", rgb_profile(DISPLAY_P3)[:200]), ("RGB", b"\0" * 500), ("RGB", gray_profile()), ("L", cmyk_profile())],
)
def test_profile_that_cannot_be_used_is_named_and_ignored(tmp_path, make_config, mode, icc):
    image = Image.fromarray(COLORS).convert(mode)
    with pytest.raises(ProfileError):
        profile_transform(stored(image, icc))
    for name in "ab":
        image.save(tmp_path / f"{name}.png", icc_profile=icc, dpi=(ord(name), 1))
    config = make_config(dataset={"path": str(tmp_path)})
    data = load_folder(config)
    np.testing.assert_array_equal(data.training[0].numpy(), fit(image, 8, 3))
    (note,) = data.warnings
    assert note.startswith("2 ") and ".png" in note
    images, changes = read_image_files(tmp_path / "a.png", config, "cpu")
    np.testing.assert_array_equal(images[0].mul(255).round().byte().numpy(), fit(image, 8, 3))
    assert any("profile" in change for change in changes)


def test_deep_gray_pictures_are_scaled_without_their_profile():
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    image = stored(Image.fromarray(values), gray_profile())
    np.testing.assert_array_equal(fit(image, 8, 1)[0], np.rint(values / 63000 * 255))
