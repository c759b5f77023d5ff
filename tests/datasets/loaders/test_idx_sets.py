import gzip
import hashlib
import io
import zipfile

import numpy as np
import pytest
import torch

from nvae.data.loaders.idx_sets import load_stacked_mnist
from nvae.data.paths import find_below
from nvae.schema import NAMED_DATASETS
from nvae.system.errors import UserError

IDX_SETS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}


def idx(images):
    return np.array([2051, *images.shape], ">u4").tobytes() + images.tobytes()


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return {
        "train": random.integers(0, 256, (7, 28, 28), np.uint8),
        "t10k": random.integers(0, 256, (3, 28, 28), np.uint8),
    }


@pytest.fixture
def files(set_folder, images):
    """Compressed files, directly in the folder of the data set."""
    set_folder.mkdir()
    for part, pixels in images.items():
        (set_folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
    return set_folder


@pytest.fixture
def load(load):
    return lambda name="mnist", keys=None, **changes: load(name, keys, **({"image_channels": 1} | changes))


def test_mnist_at_32_pixels_is_padded(files, images, load):
    data = load(input_dimension=32)
    assert data.training.shape == (7, 1, 32, 32)
    assert torch.equal(data.training[:, 0, 2:-2, 2:-2], torch.from_numpy(images["train"]))
    assert torch.equal(data.validation[:, 0, 2:-2, 2:-2], torch.from_numpy(images["t10k"]))
    assert data.training.sum() == int(images["train"].sum(dtype=np.int64))


@pytest.mark.parametrize("name", IDX_SETS)
def test_idx_set_at_28_pixels_is_unchanged(files, images, load, name):
    data = load(name, input_dimension=28)
    assert torch.equal(data.training[:, 0], torch.from_numpy(images["train"]))
    assert torch.equal(data.validation[:, 0], torch.from_numpy(images["t10k"]))
    assert data.test is None


def test_mnist_other_sizes_are_resampled_and_channels_repeated(files, images, load):
    data = load(input_dimension=64, image_channels=3)
    assert data.training.shape == (7, 3, 64, 64)
    assert torch.equal(data.training[:, 0], data.training[:, 2])
    assert data.training.float().mean().item() == pytest.approx(images["train"].mean(), rel=0.02)


@pytest.mark.parametrize(("name", "class_name"), IDX_SETS.items())
def test_idx_set_reads_the_files_of_torchvision(set_folder, images, load, name, class_name):
    raw = set_folder / class_name / "raw"
    raw.mkdir(parents=True)
    for part, pixels in images.items():
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
    assert load(name, input_dimension=28).training.shape == (7, 1, 28, 28)


@pytest.mark.parametrize("name", ["train-images.idx3-ubyte", "train-images-idx3-ubyte/train-images-idx3-ubyte"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_found_under_other_spellings_whether_compressed_or_not(set_folder, images, load, name, packed, suffix):
    for part, pixels in images.items():
        file = set_folder / "archive" / f"{name}{suffix}".replace("train", part)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(idx(pixels)) if packed else idx(pixels))
    assert torch.equal(load(input_dimension=28).training[:, 0], torch.from_numpy(images["train"]))


def test_mnist_as_kaggle_has_it_is_read(root, load):
    folder = root.parent / "shared" / "cases" / "kaggle_mnist"
    if not folder.is_dir():
        pytest.skip(f"the folder is missing: {folder}")
    data = load(keys={"path": str(folder)}, input_dimension=28)
    content = (folder / "t10k-images.idx3-ubyte").read_bytes()[16:]
    assert data.validation.numpy().tobytes() == content and len(data.training) == 60


def test_folder_of_several_sets_gives_each_its_own_files(set_folder, images, load):
    """torchvision's layout in one root: the files of these sets have the same names."""
    for gray, folder in enumerate(("notMNIST", "MNIST", "FashionMNIST")):
        raw = set_folder / folder / ("" if folder == "notMNIST" else "raw")
        raw.mkdir(parents=True)
        for part, pixels in images.items():
            (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(np.full_like(pixels, gray)))
    assert load("mnist", input_dimension=28).training.unique().tolist() == [1]
    assert load("fashion_mnist", input_dimension=28).training.unique().tolist() == [2]
    with pytest.raises(UserError, match="no route"):  # the files of other sets are not taken for it
        load("emnist", input_dimension=28)


def test_folders_with_the_beginning_of_another_name_are_looked_into(tmp_path):
    (tmp_path / "celeba-256").mkdir()
    (tmp_path / "celeba-256" / "0.jpg").touch()
    assert find_below(tmp_path, ["0.jpg"], "celeba_hq") == tmp_path / "celeba-256" / "0.jpg"


@pytest.mark.parametrize(
    ("dataset", "others"), [("fashion_mnist", ["mnist-original"]), ("kmnist", ["fashion-mnist-kaggle", "mnist_sets"])]
)
def test_files_of_another_set_with_the_same_names_are_not_taken(tmp_path, dataset, others):
    name = "train-images-idx3-ubyte.gz"
    for folder in (*others, "own"):
        (tmp_path / folder).mkdir()
    for other in others:
        (tmp_path / other / name).write_bytes(other.encode())
    assert find_below(tmp_path, [name], dataset, "another", files=True) is None
    md5 = hashlib.md5(others[0].encode()).hexdigest()
    assert find_below(tmp_path, [name], dataset, md5, files=True) == tmp_path / others[0] / name
    (own := tmp_path / "own" / name).touch()
    assert find_below(tmp_path, [name], dataset, "another", files=True) == own


def test_of_several_files_of_one_name_the_published_one_is_taken(tmp_path):
    for folder in "abc":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.bin").write_bytes(folder.encode())
    md5 = hashlib.md5(b"b").hexdigest()
    assert find_below(tmp_path, ["x.bin"], "mnist", md5) == tmp_path / "b" / "x.bin"
    assert find_below(tmp_path, ["x.bin"], "mnist") == tmp_path / "a" / "x.bin"


def test_mnist_validation_images_are_training_images(files, images, load):
    data = load(keys={"validation_images": 2}, input_dimension=28, image_channels=3)
    assert torch.equal(data.test[:, 1], torch.from_numpy(images["t10k"]))
    kept = torch.cat([data.training, data.validation])
    assert (len(data.training), len(data.validation)) == (5, 2)
    assert {image.tobytes() for image in kept[:, 1].numpy()} == {image.tobytes() for image in images["train"]}


@pytest.mark.parametrize("name", IDX_SETS)
def test_idx_set_is_downloaded_once(set_folder, images, load, server, accept, name):
    published = NAMED_DATASETS[name].files
    content = {part: gzip.compress(idx(images[key])) for part, key in (("training", "train"), ("test", "t10k"))}
    server.files = {published[part]["url"]: content[part] for part in published}
    with pytest.raises(UserError, match="MD5"):
        load(name)
    accept()
    server.requests.clear()
    for _ in range(2):
        assert len(load(name, input_dimension=28).validation) == 3
    assert server.requests == [file["url"] for file in published.values()]


@pytest.mark.parametrize("damage", [lambda b: b[:-50], lambda b: b"hello" + b, lambda b: b""])
def test_mnist_damaged_file_is_refused(files, load, damage):
    file = files / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match="train-images"):
        load()


# --------------------------------------------------------------------------------------------------- stacked_mnist


def test_stacked_mnist_has_a_digit_of_its_part_in_every_channel(files, images, load):
    keys = {"training_images": 40, "test_images": 30}
    data = load("stacked_mnist", keys, input_dimension=28, image_channels=3)
    assert data.training.shape == (40, 3, 28, 28) and data.validation.shape == (30, 3, 28, 28)
    for part, key in ((data.training, "train"), (data.validation, "t10k")):
        digits = [digit.tobytes() for digit in images[key]]
        triples = [tuple(digits.index(channel.tobytes()) for channel in image) for image in part.numpy()]
        assert {number for triple in triples for number in triple} == set(range(len(digits)))
        assert len(set(triples)) > 15  # of 343 and 27


def test_stacked_mnist_image_depends_on_seed_and_number_alone(files, load):
    def training(**keys):
        return load("stacked_mnist", {"test_images": 2} | keys, input_dimension=28, image_channels=3).training

    many = training(training_images=300)
    assert torch.equal(training(training_images=7), many[:7])
    assert not torch.equal(training(training_images=300, stack_seed=1), many)
    assert load("stacked_mnist", {"training_images": 9}, input_dimension=32, image_channels=3).training.shape[2] == 32


def test_stacked_mnist_reads_the_files_of_mnist(files, load, make_config, monkeypatch):
    (files.parent / "dataset").mkdir()
    files.rename(files.parent / "dataset" / "mnist")
    monkeypatch.chdir(files.parent)
    config = make_config(
        dataset={"name": "stacked_mnist", "training_images": 5, "test_images": 2, "validation_images": 1},
        input_dimension=28,
    )
    data = load_stacked_mnist(config)
    assert [len(data.training), len(data.validation), len(data.test)] == [4, 1, 2]


# ---------------------------------------------------------------------------------------------------------- emnist


@pytest.fixture
def emnist(images):
    """The archive of two of the subsets, whose images are transposed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for version, count in (("balanced", 7), ("letters", 5)):
            for part, key in (("train", "train"), ("test", "t10k")):
                content = idx(images[key][:count].swapaxes(1, 2).copy())
                archive.writestr(f"gzip/emnist-{version}-{part}-images-idx3-ubyte.gz", gzip.compress(content))
    return buffer.getvalue()


def test_emnist_images_are_upright(set_folder, images, emnist, load, accept):
    accept()
    set_folder.mkdir()
    (set_folder / "gzip.zip").write_bytes(emnist)
    data = load("emnist", input_dimension=28)
    assert torch.equal(data.training[:, 0], torch.from_numpy(images["train"]))
    assert torch.equal(data.validation[:, 0], torch.from_numpy(images["t10k"]))


def test_emnist_versions_come_from_one_download(images, emnist, load, server, accept):
    accept()
    url = "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip"
    server.files[url] = emnist
    for version, count in (("balanced", 7), ("letters", 5)):
        data = load("emnist", {"version": version}, input_dimension=28)
        assert torch.equal(data.training[:, 0], torch.from_numpy(images["train"][:count]))
    assert server.requests == [url]


@pytest.mark.parametrize("folder", ["", "EMNIST/raw"])
def test_emnist_reads_files_by_themselves(set_folder, images, load, folder):
    (set_folder / folder).mkdir(parents=True)
    for part, key in (("train", "train"), ("test", "t10k")):
        (set_folder / folder / f"emnist-digits-{part}-images-idx3-ubyte").write_bytes(idx(images[key]))
    data = load("emnist", {"version": "digits"}, input_dimension=28)
    assert torch.equal(data.training[:, 0], torch.from_numpy(images["train"].swapaxes(1, 2).copy()))


def test_mnist_reads_the_real_files(root, load):
    folder = root.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real MNIST files are missing: {folder}")
    for name in ("mnist", "fashion_mnist"):
        data = load(name, {"path": str(folder / name)}, input_dimension=32)
        assert (len(data.training), len(data.validation)) == (60_000, 10_000)
