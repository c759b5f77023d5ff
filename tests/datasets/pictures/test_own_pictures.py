"""Pictures of every kind and with every fault in one folder: each decoded pixel, and the report."""

import io
import os
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from nvae.data.loaders.folder import load_folder
from nvae.system.errors import UserError

SIZE = 8
BACKGROUND = (16, 32, 48)
KEYS = {"background": "#102030", "max_image_pixels": 300, "min_image_size": 5}
ORIENTATION = 0x0112
UPRIGHT = {  # EXIF orientation: the stored array -> the upright one
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: np.rot90,
}
LOSSY = 3  # tolerance of formats that are not exact
FAULTS = {  # kind of fault: the files in `faulty_files`
    "broken": {"cut.png", "cut.jpg"},
    "unreadable": {"link.png"},
    "empty": {"empty.jpg"},
    "duplicate": {"more/copy.png"},
    "too small": {"small.png"},
    "too large": {"large.png"},
    "not an image": {"labels.csv", "photo.heic", "picture.tga", "pipe.png"},
}


def gray(array):
    """A gray image (S, S) in three channels."""
    return np.repeat(array[:, :, None], 3, axis=2)


def scaled(array):
    low, high = float(array.min()), float(array.max())
    return gray(np.rint((array.astype(np.float64) - low) / (high - low) * 255).astype(np.uint8))


def png_of_16_bit_colors(array):
    """A PNG file of uint16 (H, W, 3), which Pillow cannot write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sound_files(folder):
    """Write a picture of each kind. Returns the expected image (S, S, 3) and the tolerance of each file by its name."""
    random = np.random.default_rng(0)
    expected = {}

    def draw(*shape, high=256, dtype=np.uint8):
        return random.integers(0, high, (SIZE, SIZE, *shape)).astype(dtype)

    def save(name, image, array, tolerance=0, **options):
        image.save(folder / name, **options)
        expected[name] = (array, tolerance)

    (folder / "more" / "deeper").mkdir(parents=True)
    for name in ("color.png", "color.bmp", "color.tiff", "color.ppm", "more/deeper/color.png"):
        save(name, Image.fromarray(array := draw(3)), array)
    save("color.webp", Image.fromarray(array := draw(3)), array, lossless=True)
    save("color.jp2", Image.fromarray(array := draw(3)), array)
    save("bmp_without_ending", Image.fromarray(array := draw(3)), array, format="BMP")
    save("png_with_another.gif", Image.fromarray(array := draw(3)), array, format="PNG")
    for name in ("gray.png", "gray.gif", "gray.tiff", "gray.bmp", "gray.pgm"):
        save(name, Image.fromarray(array := draw()), gray(array))
    save("bits.png", Image.fromarray(array := draw(high=2).astype(bool)), gray(array * np.uint8(255)))

    # One color each, because the formats are lossy.
    for index, (name, options) in enumerate(
        [("photo.jpg", {}), ("photo.jfif", {"format": "JPEG"}), ("photo.avif", {}), ("photo.webp", {})]
    ):
        color = (40 * index + 30, 200 - 30 * index, 90)
        array = np.broadcast_to(np.array(color, np.uint8), (SIZE, SIZE, 3))
        save(name, Image.new("RGB", (SIZE, SIZE), color), array, LOSSY, quality=95, **options)
    array = np.broadcast_to(np.array((245, 205, 155), np.uint8), (SIZE, SIZE, 3))
    save("print.jpg", Image.new("CMYK", (SIZE, SIZE), (10, 50, 100, 0)), array, LOSSY, quality=95)

    ink = draw(4)
    ink[..., 3] = 0
    save("print.tiff", Image.fromarray(ink, "CMYK"), 255 - ink[..., :3])

    indices, palette = draw(high=5), draw(3)[0, :5]
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    save("palette.png", image, palette[indices])
    clear = np.where((indices == 2)[..., None], np.uint8(BACKGROUND), palette[indices])
    save("palette_transparent.png", image, clear, transparency=2)

    rgba = draw(4)
    rgba[..., 3] = 255 * (rgba[..., 3] > 99)
    opaque = np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(BACKGROUND))
    for name in ("transparent.png", "transparent.tiff"):
        rgba = np.roll(rgba, 1, axis=0)
        opaque = np.roll(opaque, 1, axis=0)
        save(name, Image.fromarray(rgba), opaque)
    la = draw(2)
    la[..., 1] = 255 * (la[..., 1] > 99)
    save("transparent_gray.png", Image.fromarray(la), np.where(la[..., 1:] > 0, la[..., :1], np.uint8(BACKGROUND)))

    frames = [Image.fromarray(draw()) for _ in range(3)]
    first = gray(np.array(frames[0]))
    save("animation.gif", frames[0], first, save_all=True, append_images=frames[1:])
    pages = [Image.fromarray(draw()) for _ in range(2)]
    save("pages.tiff", pages[0], gray(np.array(pages[0])), save_all=True, append_images=pages[1:])

    twelve = draw(high=4096, dtype=np.uint16)  # 12 bits in a file of 16 bits
    save("xray.png", Image.fromarray(twelve), scaled(twelve))
    save("xray.tiff", Image.fromarray(other := draw(high=4096, dtype=np.uint16)), scaled(other))
    floats = draw(high=1000).astype(np.float32) / 1000 - 0.3
    save("float.tiff", Image.fromarray(floats), scaled(floats))
    wide = draw(3, high=65536, dtype=np.uint16)
    (folder / "deep_color.png").write_bytes(png_of_16_bit_colors(wide))
    expected["deep_color.png"] = ((wide >> 8).astype(np.uint8), 0)

    for orientation, upright in UPRIGHT.items():
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        save(f"turned_{orientation}.png", Image.fromarray(array := draw(3)), upright(array), exif=exif)
    save("broken_exif.png", Image.fromarray(array := draw(3)), array, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0up!\0\0\0\0\0"  # the orientation is a text
    save("text_as_orientation.png", Image.fromarray(array := draw(3)), array, exif=exif)
    return expected


def faulty_files(folder, special=True):
    """Write a file with each of FAULTS. special: also a broken link and a pipe, which archives do not hold."""
    random = np.random.default_rng(1)
    whole = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
    for name in FAULTS["broken"]:
        whole.save(folder / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").touch()
    shutil.copy(folder / "color.png", folder / "more" / "copy.png")
    Image.new("RGB", (4, 20)).save(folder / "small.png")
    Image.new("RGB", (20, 20)).save(folder / "large.png")
    Image.new("RGB", (9, 9)).save(folder / "picture.tga")
    (folder / "labels.csv").write_text("name,label\n")
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    (folder / ".hidden.png").write_bytes(b"hidden files are nobody's pictures")
    if special:
        (folder / "link.png").symlink_to(folder / "nowhere.png")
        os.mkfifo(folder / "pipe.png")


def sections(report):
    """Map each kind of fault in the text of a report to its files."""
    parts = [part.splitlines() for part in report.split("\n\n")]
    return {lines[0].rstrip(":"): {line.split(" (")[0].strip() for line in lines[1:]} for lines in parts[1:]}


def images_of(data):
    return [image.transpose(1, 2, 0) for part in (data.training, data.validation) for image in part.numpy()]


def assert_decoded(images, expected):
    """Every expected image is there, once, and there is no other."""
    remaining = list(images)
    for name, (array, tolerance) in expected.items():
        distances = [np.abs(image.astype(int) - array).max() for image in remaining]
        nearest = int(np.argmin(distances)) if distances else 0
        assert distances and distances[nearest] <= tolerance, (name, distances[nearest], remaining[nearest], array)
        del remaining[nearest]
    assert remaining == []


@pytest.fixture
def load(make_config):
    return lambda path, **keys: load_folder(make_config(dataset={"name": "folder", "path": str(path)} | KEYS | keys))


def test_folder_of_every_kind_and_fault(tmp_path, load):
    expected = sound_files(tmp_path)
    faulty_files(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    data = load(tmp_path)
    assert_decoded(images_of(data), expected)
    found = sections(data.report)
    duplicate = found.pop("duplicate")
    assert duplicate in ({"more/copy.png"}, {"color.png"})  # the first in the order of the split is used
    assert {kind: names for kind, names in found.items() if kind in FAULTS} == {
        kind: names for kind, names in FAULTS.items() if kind != "duplicate"
    }
    counts = data.report.partition("\n\n")[0]
    assert f"{len(expected):,} pictures used" in counts
    for kind, names in FAULTS.items():
        assert f"{len(names)}  {kind} (" in counts
    assert "3 gray" in data.report
    assert "1 pictures of 16 bits" in data.report
    assert sorted(tmp_path.rglob("*")) == before
    warning = data.warnings[-1]
    total = len(expected) + sum(map(len, FAULTS.values()))
    assert f"{sum(map(len, FAULTS.values())) - 1} of {total - 1}" in warning  # labels.csv is worth no warning
    assert "cut.png" in warning and "labels.csv" not in warning


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "bztar", "xztar"])
@pytest.mark.parametrize("with_top_folder", [False, True])
def test_archive_is_the_same_as_its_folder(tmp_path, load, kind, with_top_folder):
    folder = tmp_path / "pictures"
    folder.mkdir()
    sound_files(folder)
    faulty_files(folder, special=False)
    base = {"root_dir": tmp_path, "base_dir": "pictures"} if with_top_folder else {"root_dir": folder}
    archive = shutil.make_archive(str(tmp_path / "archive"), kind, **base)
    hidden = os.path.join(tmp_path, "no_ending_of_an_archive")
    os.rename(archive, hidden)
    data, of_folder = load(hidden), load(folder)
    assert data.fingerprint == of_folder.fingerprint
    assert sections(data.report) == sections(of_folder.report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no_ending_of_an_archive", "pictures"]


def test_archive_with_damage_keeps_the_pictures_before(tmp_path, load):
    folder = tmp_path / "pictures"
    folder.mkdir()
    sound_files(folder)
    archive = shutil.make_archive(str(tmp_path / "archive"), "tar", folder)
    with open(archive, "r+b") as file:
        file.truncate(os.path.getsize(archive) // 2)
    data = load(archive)
    assert 2 < len(images_of(data)) < len(images_of(load(folder)))
    assert "archive.tar" in data.warnings[-1]


def test_archive_split_is_stable_when_a_file_beside_the_top_folder_is_added(tmp_path, load):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(40):
            archive.writestr(f"top/{i}.png", png_of(i))
    before = load(path, validation_fraction=0.3)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("0.png", png_of(200))
    after = load(path, validation_fraction=0.3)
    for part in ("training", "validation"):
        grays = [set(getattr(data, part)[:, 0, 0, 0].tolist()) for data in (before, after)]
        assert grays[0] == grays[1] - {200}


def png_of(gray):
    file = io.BytesIO()
    Image.new("L", (SIZE, SIZE), gray).save(file, "PNG")
    return file.getvalue()


def test_archive_of_parts_with_most_files_in_one_of_them_is_split_by_them(tmp_path, load):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(40):
            archive.writestr(f"{'val' if i == 7 else 'train'}/{i}.png", png_of(i))
    assert load(path).validation[:, 0, 0, 0].tolist() == [7]


def test_archive_of_another_kind_is_refused(tmp_path, load):
    (tmp_path / "a.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    with pytest.raises(UserError, match=r"a\.7z.*Extract"):
        load(tmp_path / "a.7z")


def test_unreadable_subfolder_is_named(tmp_path, load, monkeypatch):
    expected = sound_files(tmp_path)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    data = load(tmp_path)
    del expected["more/deeper/color.png"]
    assert_decoded(images_of(data), expected)
    assert sections(data.report)["unreadable"] == {"more/"}
    assert "more/" in data.warnings[-1]


# ------------------------------------------------------------------------------------------ the shape and the values


@pytest.fixture
def load_one(tmp_path, load):
    """A function: an array as the model sees the array in a PNG file, (S, S, 3)."""

    def load_one(array, **keys):
        for name in "ab":
            Image.fromarray(array).save(tmp_path / f"{name}.png", description=name, dpi=(ord(name), 1))
        image, other = images_of(load(tmp_path, **({"max_image_pixels": 10_000} | keys)))
        np.testing.assert_array_equal(image, other)
        return image

    return load_one


def test_transparent_value_of_a_deep_picture_gets_the_background(tmp_path, load):
    values = np.random.default_rng(0).integers(1, 4096, (SIZE, SIZE)).astype(np.uint16)
    values[2:4] = 777
    for name in "ab":
        Image.fromarray(values).save(tmp_path / f"{name}.png", transparency=777, dpi=(ord(name), 1))
    expected = np.where((values == 777)[..., None], np.uint8(BACKGROUND), scaled(values))
    np.testing.assert_array_equal(images_of(load(tmp_path))[0], expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_lab_colors_are_read(tmp_path, make_config, channels):
    for level in (10, 20):
        Image.new("LAB", (SIZE, SIZE), (level, 128, 128)).save(tmp_path / f"{level}.tiff")
    data = load_folder(make_config(image_channels=channels, dataset={"path": str(tmp_path)}))
    assert data.report == "" and data.training.shape[1] == channels


@pytest.mark.parametrize("upright", [False, True])
def test_fit_crop_keeps_the_center(load_one, upright):
    array = np.random.default_rng(0).integers(0, 256, (SIZE, 2 * SIZE, 3), np.uint8)
    center = array[:, SIZE // 2 : -SIZE // 2]
    if upright:
        array, center = array.swapaxes(0, 1), center.swapaxes(0, 1)
    np.testing.assert_array_equal(load_one(np.ascontiguousarray(array), fit="crop"), center)


def test_fit_crop_anywhere_crops_at_a_place_of_the_name(tmp_path, load):
    """Uniformly along the longer side, the same in every run; the other side is whole."""
    column, row = np.meshgrid(np.arange(3 * SIZE), np.arange(SIZE))
    array = np.stack([column, row, 0 * row], -1).astype(np.uint8)
    for i in range(200):
        Image.fromarray(array).save(tmp_path / f"{i}.png", dpi=(i + 1, 1))
    keys = {"max_image_pixels": 10_000, "fit": "crop_anywhere", "resampling": "bilinear"}
    images, again = (np.stack(images_of(load(tmp_path, **keys))) for _ in range(2))
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(images[..., 1], np.broadcast_to(row[:, :SIZE], images.shape[:3]))
    left = images[:, 0, 0, 0].astype(float)
    assert left.min() <= 1 and left.max() >= 2 * SIZE - 1
    assert abs(left.mean() - SIZE) < 4 * 2 * SIZE / np.sqrt(12 * 200)


def test_crop_is_the_part_of_the_upright_picture_and_needs_all_of_the_part(tmp_path, load):
    array = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # stored lying on its side
    Image.fromarray(np.ascontiguousarray(np.rot90(array))).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(array[:12]).save(tmp_path / "small.png")
    data = load(tmp_path, max_image_pixels=10_000, crop=[3, 5, SIZE, SIZE])
    part = array[5 : 5 + SIZE, 3 : 3 + SIZE]
    for image in images_of(data):
        np.testing.assert_array_equal(image, part)
    assert "small.png" in data.report


@pytest.mark.parametrize("upright", [False, True])
def test_fit_pad_keeps_everything_between_the_background(load_one, upright):
    array = np.random.default_rng(0).integers(0, 256, (SIZE // 2, SIZE, 3), np.uint8)
    edge = np.broadcast_to(np.uint8(BACKGROUND), (SIZE // 4, SIZE, 3))
    padded = np.concatenate([edge, array, edge])
    if upright:
        array, padded = array.swapaxes(0, 1), padded.swapaxes(0, 1)
    result = load_one(np.ascontiguousarray(array), fit="pad", min_image_size=1)
    np.testing.assert_array_equal(result, padded)


def test_fit_stretch_resamples_the_long_side_alone(load_one):
    rows = np.random.default_rng(0).integers(0, 256, (SIZE, 1, 3), np.uint8)
    array = np.repeat(rows, 4 * SIZE, axis=1)
    array[:, : 2 * SIZE] = 0  # the left half: cropping would keep as much
    array[:, : SIZE // 2] = 255  # the first eighth: cropping would remove these columns
    result = load_one(array, fit="stretch")
    assert (result[:, 0] > 180).all()
    assert (result[:, 2] < 40).all()
    np.testing.assert_array_equal(result[:, -1:], rows)


def test_percentiles_limit_the_range_of_deep_pictures(load_one):
    array = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) + 1000
    array[0, 0], array[-1, -1] = 0, 60_000  # dead and hot pixels
    plain, limited = load_one(array), load_one(array, percentiles=[5, 95])
    assert np.unique(plain).size < 10
    low, high = np.percentile(array, [5, 95])
    expected = np.rint((array.astype(float).clip(low, high) - low) / (high - low) * 255)
    np.testing.assert_array_equal(limited, gray(expected.astype(np.uint8)))
