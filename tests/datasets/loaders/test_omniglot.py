"""OMNIGLOT's two formats with few images."""

import io
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from nvae.system.errors import UserError

CHARDATA = "chardata.mat"
CHARDATA_URL = "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat"
DRAWINGS = "omniglot-py"


@pytest.fixture
def load(load):
    def load_version(version="chardata", keys=None, **changes):
        defaults = {"image_channels": 1, "input_dimension": 28}
        return load("omniglot", {"version": version} | (keys or {}), **(defaults | changes))

    return load_version


@pytest.fixture
def images():
    """uint8 (N, 28, 28): five for training, three for test."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (count, 28, 28), np.uint8) for count in (5, 3)]


@pytest.fixture
def columns(images):
    """The variables of chardata.mat: the columns of an image, one after the other, are a column."""
    matrices = [
        np.stack([np.concatenate([image[:, x] for x in range(28)]) for image in part], axis=1) / 255 for part in images
    ]
    return dict(zip(("data", "testdata"), matrices, strict=True))


@pytest.fixture
def chardata(tmp_path, columns):
    """The file in the data set's folder."""
    file = tmp_path / "set" / CHARDATA
    file.parent.mkdir()
    savemat(file, {"target": np.zeros((50, 5))} | columns, do_compression=True)
    return file


# --------------------------------------------------------------------------------------------------------- chardata


def test_chardata_at_28_pixels_is_unchanged(chardata, images, load):
    data = load()
    assert torch.equal(data.training[:, 0], torch.from_numpy(images[0]))
    assert torch.equal(data.validation[:, 0], torch.from_numpy(images[1]))
    assert data.test is None


def test_chardata_at_32_pixels_is_padded(chardata, images, load):
    data = load(input_dimension=32, image_channels=3)
    assert data.training.shape == (5, 3, 32, 32)
    assert torch.equal(data.training[:, 1, 2:-2, 2:-2], torch.from_numpy(images[0]))
    assert data.training[:, 0].sum() == int(images[0].sum(dtype=np.int64))


def test_chardata_validation_images_are_training_images(chardata, images, load):
    data = load(keys={"validation_images": 2})
    assert [len(part) for part in (data.training, data.validation, data.test)] == [3, 2, 3]
    assert torch.equal(data.test[:, 0], torch.from_numpy(images[1]))
    with pytest.raises(UserError, match=r"dataset\.validation_images"):
        load(keys={"validation_images": 5})


def test_chardata_is_downloaded_once(chardata, images, load, server):
    server.files[CHARDATA_URL] = chardata.read_bytes()
    chardata.unlink()
    for _ in range(2):
        assert torch.equal(load().training[:, 0], torch.from_numpy(images[0]))
    assert server.requests == [CHARDATA_URL]
    assert [file.name for file in chardata.parent.iterdir()] == [CHARDATA]


def test_chardata_failed_download_is_a_user_error_and_leaves_no_file(load, set_folder):
    with pytest.raises(UserError, match="no route") as raised:
        load()
    assert CHARDATA_URL in str(raised.value) and str(set_folder) in str(raised.value)
    assert not set_folder.exists()


def test_chardata_damaged_download_leaves_no_file(load, set_folder, server):
    server.files[CHARDATA_URL] = b"<html>"
    with pytest.raises(UserError, match=CHARDATA):
        load()
    assert not set_folder.exists()


@pytest.mark.parametrize("damage", [lambda b: b[:-50], lambda b: b"hello" + b, lambda b: b""])
def test_chardata_damaged_file_is_refused(chardata, load, damage):
    chardata.write_bytes(damage(chardata.read_bytes()))
    with pytest.raises(UserError, match=CHARDATA):
        load()


def spoiled(matrix, value):
    matrix = matrix.copy()
    matrix[3, 1] = value
    return matrix


@pytest.mark.parametrize(
    "change",
    [
        lambda matrix: matrix.T,
        lambda matrix: matrix[:700],
        lambda matrix: matrix[:, :0],
        lambda matrix: (matrix * 255).astype(np.uint8),
        lambda matrix: spoiled(matrix, 1.01),
        lambda matrix: spoiled(matrix, -0.01),
        lambda matrix: spoiled(matrix, np.nan),
        lambda matrix: spoiled(matrix, np.inf),
        lambda matrix: "text",
        lambda matrix: matrix * 1j,
        None,
    ],
)
@pytest.mark.parametrize("name", ["data", "testdata"])
def test_chardata_of_other_contents_is_refused(chardata, columns, load, name, change):
    changed = columns | {name: change(columns[name])} if change else {k: v for k, v in columns.items() if k != name}
    savemat(chardata, changed)
    with pytest.raises(UserError, match=f"'{name}'"):
        load()


def test_chardata_without_scipy_names_the_extra(load, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"\[omniglot\]"):
        load()
    assert not (tmp_path / "set").exists()


# ------------------------------------------------------------------------------------------------------ torchvision


@pytest.fixture
def drawings(set_folder):
    """Extracted images: five and three, a black bar on white that moves right."""
    root = set_folder / DRAWINGS
    for name, count in (("images_background", 5), ("images_evaluation", 3)):
        for i in range(count):
            pixels = np.full((105, 105), True)
            pixels[:, 15 * i : 15 * i + 15] = False
            folder = root / name / "Alphabet" / f"character0{i}"
            folder.mkdir(parents=True)
            Image.fromarray(pixels).save(folder / f"000{i}_01.png")
    return root


def pack(root, name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in (root / name).rglob("*.png"):
            archive.write(file, file.relative_to(root))
    return buffer.getvalue()


def test_torchvision_drawings_are_white_on_black(drawings, load):
    data = load("torchvision", input_dimension=105, number_of_scales=1, num_blocks_prepost=0)
    assert (data.training.shape, len(data.validation)) == ((5, 1, 105, 105), 3)
    expected = torch.zeros(5, 1, 105, 105, dtype=torch.uint8)
    for i in range(5):
        expected[i, :, :, 15 * i : 15 * i + 15] = 255
    assert torch.equal(data.training, expected)


@pytest.mark.parametrize("size", [28, 32])
def test_torchvision_drawings_are_resized_with_their_brightness(drawings, load, size):
    data = load("torchvision", {"validation_images": 2}, input_dimension=size)
    assert [len(part) for part in (data.training, data.validation, data.test)] == [3, 2, 3]
    assert data.test.shape == (3, 1, size, size)
    assert data.test[1].float().mean() == pytest.approx(255 * 15 / 105, rel=0.05)


def test_torchvision_archives_are_downloaded_once(drawings, load, server, accept):
    accept()
    expected = load("torchvision")
    prefix = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
    urls = {name: f"{prefix}/{name}.zip" for name in ("images_background", "images_evaluation")}
    server.files = {url: pack(drawings, name) for name, url in urls.items()}
    shutil.rmtree(drawings)
    for _ in range(2):
        data = load("torchvision")
        assert torch.equal(data.training, expected.training) and torch.equal(data.validation, expected.validation)
    assert server.requests == list(urls.values())


def test_torchvision_failed_download_is_a_user_error(load):
    with pytest.raises(UserError, match=r"no route.*images_background\.zip"):
        load("torchvision")


def test_torchvision_damaged_drawing_is_refused(drawings, load):
    (drawings / "images_evaluation" / "Alphabet" / "character00" / "0000_01.png").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"0000_01\.png"):
        load("torchvision")


def test_torchvision_missing_part_is_refused(drawings, load):
    (drawings / "images_evaluation").rename(drawings / "elsewhere")
    with pytest.raises(UserError, match=r"images_evaluation\.zip"):
        load("torchvision")
