"""Sets of picture files, each as a tiny fake of its layout on the disk."""

import hashlib
import io
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import Flowers102

from nvae.data.loaders import public_pictures
from nvae.data.pictures.decoding import Picture
from nvae.data.registry import load_original_images
from nvae.schema import DATASETS, NAMED_DATASETS, PublicPictureDataset
from nvae.system.errors import UserError

GRAYS = list(range(0, 250, 10))


def picture(gray, size=(40, 40)):
    """An encoded PNG of one gray value."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (gray,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def write(file, gray, size=(40, 40)):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture(gray, size))


def grays(images_u8):
    """The values of uniform images."""
    assert images_u8 is None or (images_u8 == images_u8[:, :1, :1, :1]).all()
    return None if images_u8 is None else images_u8[:, 0, 0, 0].tolist()


def parts_of(data):
    return [grays(part) for part in (data.training, data.validation, data.test)]


def tarred(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------- celeba


@pytest.fixture
def celeba(set_folder):
    """Three pictures of the published size, black with a white box of 148 x 148 pixels around the face."""
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[40:188, 15:163] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    pictures = {f"img_align_celeba/00000{i}.jpg": buffer.getvalue() for i in range(3)}
    return pictures, b"000000.jpg 0\n000001.jpg 1\n000002.jpg 2\n"


@pytest.mark.parametrize("folder", ["", "celeba"])
def test_celeba_is_cropped_as_in_the_literature(set_folder, load, celeba, folder):
    pictures, partition = celeba
    for name, content in pictures.items():
        file = set_folder / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (set_folder / folder / "list_eval_partition.txt").write_bytes(partition)
    data = load("celeba", input_dimension=64)
    assert data.training.shape == (1, 3, 64, 64)
    assert parts_of(data) == [[255], [255], [255]]


@pytest.mark.parametrize("name", ["celeba", "folder", "lmdb"])
def test_celeba64_is_what_the_program_of_nvae_sees(tmp_path, make_config, name):
    """The crop [15, 40, 148, 148] and torchvision's Resize(64), of encoded pictures of 178 x 218 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 218, 178, 3), np.uint8)
    pictures = [Image.fromarray(picture) for picture in pixels]
    dataset = {"name": name, "path": str(tmp_path), "resampling": "bilinear"}
    if name == "celeba":
        (tmp_path / "list_eval_partition.txt").write_text("0.png 0\n1.png 1\n1.png 2\n")
    folders = ["img_align_celeba"] * 2 if name == "celeba" else ["train", "val"]
    if name == "lmdb":
        lmdb = pytest.importorskip("lmdb")
        folders = ["train.lmdb", "validation.lmdb"]
    for i, (folder, picture) in enumerate(zip(folders, pictures, strict=True)):
        (tmp_path / folder).mkdir(exist_ok=True)
        if name != "lmdb":
            picture.save(tmp_path / folder / f"{i}.png")
            continue
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        with lmdb.open(str(tmp_path / folder)) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"0", buffer.getvalue())
    crop = {} if name == "celeba" else {"crop": [15, 40, 148, 148]}
    data = load_original_images(make_config(dataset=dataset | crop, input_dimension=64))
    for images_u8, picture in zip((data.training, data.validation), pictures, strict=True):
        expected = torchvision.transforms.Resize(64)(torchvision.transforms.functional.crop(picture, 40, 15, 148, 148))
        np.testing.assert_array_equal(images_u8[0].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_celeba_of_another_size_is_not_cropped(set_folder, load):
    for i in range(2):
        write(set_folder / "img_align_celeba" / f"{i}.png", GRAYS[i], (64, 64))
    (set_folder / "list_eval_partition.txt").write_text("0.png 0\n1.png 1\n1.png 2\n")
    assert parts_of(load("celeba")) == [[0], [10], [10]]


def test_celeba_is_downloaded_once(load, server, celeba, accept):
    pictures, partition = celeba
    accept()
    published = NAMED_DATASETS["celeba"].files
    urls = [published[key]["url"] for key in ("pictures", "partition")]
    server.files = dict(zip(urls, (zipped(pictures), partition), strict=True))
    for _ in range(2):
        assert parts_of(load("celeba")) == [[255], [255], [255]]
    assert server.requests == urls


def test_celeba_of_kaggle_is_found_with_its_doubled_folder_and_list_with_commas(set_folder, load, celeba):
    pictures, _ = celeba
    for name, content in pictures.items():
        file = set_folder / "archive" / "img_align_celeba" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (set_folder / "archive" / "list_eval_partition.csv").write_text(
        "image_id,partition\n000000.jpg,0\n000001.jpg,1\n000002.jpg,2\n"
    )
    assert parts_of(load("celeba")) == [[255], [255], [255]]


def test_celeba_as_kaggle_has_it_is_read(root, load):
    folder = root.parent / "shared" / "cases" / "kaggle_celeba"
    if not folder.is_dir():
        pytest.skip(f"the folder is missing: {folder}")
    data = load("celeba", {"path": str(folder)})
    numbers = [line.rpartition(",")[2] for line in (folder / "list_eval_partition.csv").read_text().splitlines()[1:]]
    assert [len(data.training), len(data.validation), len(data.test)] == [numbers.count(part) for part in "012"]


def test_celeba_damaged_partition_is_refused(set_folder, load):
    write(set_folder / "img_align_celeba" / "1.png", 0)
    (set_folder / "list_eval_partition.txt").write_bytes(b"\xff\xfe 7")
    with pytest.raises(UserError, match=r"list_eval_partition\.txt"):
        load("celeba")


# ------------------------------------------------------------------------------------------- faces without a split


@pytest.mark.parametrize("name", ["celeba_hq", "ffhq"])
@pytest.mark.parametrize("nested", [False, True])
def test_faces_are_split_after_nine_tenths_by_path(set_folder, load, name, nested):
    for i in range(20):
        write(set_folder / (f"{i // 5:05}" if nested else "") / f"{i:05}.png", GRAYS[i])
    (set_folder / "README.txt").write_text("no picture")
    assert parts_of(load(name)) == [GRAYS[:18], GRAYS[18:20], None]


@pytest.mark.parametrize(
    ("name", "folder"), [("celeba_hq", "CelebA-HQ-img"), ("ffhq", "images1024x1024"), ("ffhq", "thumbnails128x128")]
)
def test_faces_of_the_publishers_folder_alone_are_read(set_folder, load, name, folder):
    for i in range(10):
        write(set_folder / folder / f"{i}.png", GRAYS[i])
        write(set_folder / "masks" / f"{i}.png", 255)
    assert parts_of(load(name)) == [GRAYS[:9], [90], None]


def test_faces_in_train_and_val_are_split_so(set_folder, load):
    for i in range(4):
        write(set_folder / ("train" if i % 2 else "val") / f"{i}.png", GRAYS[i])
    assert parts_of(load("ffhq")) == [[10, 30], [0, 20], None]


@pytest.mark.parametrize("folder", ["celeba_hq", "archive/celeba_hq"])
def test_faces_are_found_below_a_folder(set_folder, load, folder):
    for i in range(4):
        write(set_folder / folder / ("train" if i % 2 else "val") / "female" / f"{i}.jpg", GRAYS[i])
    assert parts_of(load("celeba_hq")) == [[10, 30], [0, 20], None]


def test_faces_of_databases_are_read(set_folder, load):
    pytest.importorskip("nvae.data.loaders.lmdb_files", reason="there is no reader of LMDB databases")
    lmdb = pytest.importorskip("lmdb", reason="the extra 'lmdb' is not installed")
    set_folder.mkdir()
    for name, values in (("train.lmdb", GRAYS[:3]), ("validation.lmdb", GRAYS[3:5])):
        with lmdb.open(str(set_folder / name), map_size=2**20) as database, database.begin(write=True) as transaction:
            for i, value in enumerate(values):
                transaction.put(str(i).encode(), picture(value))
    assert parts_of(load("celeba_hq")) == [GRAYS[:3], GRAYS[3:5], None]


# ---------------------------------------------------------------------------------------------- a folder for a part


def test_tiny_imagenet_reads_the_three_folders(set_folder, load):
    root = set_folder / "tiny-imagenet-200"
    for i in range(4):
        write(root / "train" / f"n0{i % 2}" / "images" / f"n0{i % 2}_{i}.JPEG", GRAYS[i])
    write(root / "val" / "images" / "val_0.JPEG", 100)
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG n00")
    write(root / "test" / "images" / "test_0.JPEG", 200)
    assert parts_of(load("tiny_imagenet")) == [[0, 20, 10, 30], [100], [200]]


def test_tiny_imagenet_of_kaggle_is_found_in_its_doubled_folder(set_folder, load):
    root = set_folder / "tiny-imagenet-200" / "tiny-imagenet-200"
    for part, gray in (("train", 1), ("val", 2), ("test", 3)):
        write(root / part / "images" / "0.JPEG", gray)
    assert parts_of(load("tiny_imagenet")) == [[1], [2], [3]]


def test_imagenet_of_kaggle_is_found_beside_its_annotations(set_folder, load):
    for part, gray in (("train", 1), ("val", 2)):
        write(set_folder / "ILSVRC" / "Data" / "CLS-LOC" / part / "n01" / "0.JPEG", gray)
        annotations = set_folder / "ILSVRC" / "Annotations" / "CLS-LOC" / part / "0.xml"
        annotations.parent.mkdir(parents=True)
        annotations.touch()
    assert parts_of(load("imagenet")) == [[1], [2], None]


def test_tiny_imagenet_is_downloaded_once(load, server, accept):
    accept()
    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    names = ("train/n0/images/0.JPEG", "val/images/0.JPEG", "test/images/0.JPEG")
    server.files[url] = zipped({f"tiny-imagenet-200/{name}": picture(7) for name in names})
    for _ in range(2):
        assert parts_of(load("tiny_imagenet")) == [[7], [7], [7]]
    assert server.requests == [url]


def test_imagenet_reads_folders_of_classes(set_folder, load):
    write(set_folder / "train" / "n01" / "n01_1.JPEG", 1, (60, 40))
    write(set_folder / "train" / "n02" / "n02_1.JPEG", 2, (40, 60))
    write(set_folder / "val" / "n01" / "ILSVRC2012_val_1.JPEG", 3)
    assert parts_of(load("imagenet")) == [[1, 2], [3], None]
    held_out = load("imagenet", {"validation_images": 1})
    assert len(held_out.training) == 1 and grays(held_out.test) == [3]


def test_imagenet_unpacks_the_official_archives(set_folder, load, accept):
    accept()
    set_folder.mkdir()
    classes = {f"n0{i}.tar": tarred({f"n0{i}_1.JPEG": picture(i)}) for i in range(2)}
    (set_folder / "ILSVRC2012_img_train.tar").write_bytes(tarred(classes))
    (set_folder / "ILSVRC2012_img_val.tar").write_bytes(tarred({"ILSVRC2012_val_1.JPEG": picture(9)}))
    assert parts_of(load("imagenet")) == [[0, 1], [9], None]


@pytest.mark.parametrize("training", ["data_256", "data_256_standard"])
def test_places365_reads_the_small_pictures(set_folder, load, training):
    for i in range(3):
        write(set_folder / training / "a" / f"abbey{i}" / "1.jpg", GRAYS[i])
    write(set_folder / "val_256" / "Places365_val_1.jpg", 100)
    assert parts_of(load("places365")) == [GRAYS[:3], [100], None]


def test_pictures_that_cannot_be_read_are_left_out_and_named(set_folder, load):
    write(set_folder / "train" / "n01" / "1.JPEG", 1)
    (set_folder / "train" / "n01" / "2.JPEG").write_bytes(b"damaged")
    write(set_folder / "val" / "n01" / "3.JPEG", 3)
    data = load("imagenet")
    assert grays(data.training) == [1]
    assert any("2.JPEG" in warning for warning in data.warnings)
    assert "2.JPEG" in data.report
    (set_folder / "train" / "n01" / "1.JPEG").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"1\.JPEG"):
        load("imagenet")


# ---------------------------------------------------------------------------------------------- dtd and flowers102


def test_dtd_reads_the_lists_of_a_partition(set_folder, load):
    root = set_folder / "dtd" / "dtd"
    (root / "labels").mkdir(parents=True)
    for i in range(6):
        write(root / "images" / "banded" / f"banded_{i}.jpg", GRAYS[i])
    for partition in (1, 2):
        for i, part in enumerate(("train", "val", "test")):
            names = [f"banded/banded_{(2 * i + j + partition - 1) % 6}.jpg" for j in range(2)]
            (root / "labels" / f"{part}{partition}.txt").write_text("\n".join(names))
    assert parts_of(load("dtd")) == [[0, 10], [20, 30], [40, 50]]
    assert parts_of(load("dtd", {"partition": 2})) == [[10, 20], [30, 40], [50, 0]]


def test_dtd_and_flowers102_are_found_where_their_archives_were_unpacked(set_folder, load):
    for i, part in enumerate(("train", "val", "test")):
        write(set_folder / "dtd" / "images" / "banded" / f"banded_{i}.jpg", GRAYS[i])
        (set_folder / "dtd" / "labels").mkdir(exist_ok=True)
        (set_folder / "dtd" / "labels" / f"{part}1.txt").write_text(f"banded/banded_{i}.jpg\n")
        write(set_folder / "flowers" / "jpg" / f"image_0000{i + 1}.jpg", GRAYS[i])
    savemat(set_folder / "flowers" / "imagelabels.mat", {"labels": np.ones(3, int)})
    savemat(set_folder / "flowers" / "setid.mat", {"trnid": [3], "valid": [1], "tstid": [2]})
    assert parts_of(load("dtd")) == [[0], [10], [20]]
    assert parts_of(load("flowers102")) == [[20], [0], [10]]


def test_dtd_without_lists_is_downloaded_again(set_folder, load, server, accept):
    (set_folder / "dtd" / "dtd" / "labels").mkdir(parents=True)
    accept()
    url = NAMED_DATASETS["dtd"].files["pictures"]["url"]
    lists = {f"dtd/labels/{part}1.txt": b"banded/banded_1.jpg" for part in ("train", "val", "test")}
    server.files[url] = tarred(lists | {"dtd/images/banded/banded_1.jpg": picture(5)})
    assert parts_of(load("dtd")) == [[5], [5], [5]]
    assert server.requests == [url]


@pytest.fixture
def flowers(set_folder, monkeypatch):
    root = set_folder / "flowers-102"
    for i in range(1, 7):
        write(root / "jpg" / f"image_0000{i}.jpg", GRAYS[i])
    savemat(root / "imagelabels.mat", {"labels": np.ones(6, int)})
    savemat(root / "setid.mat", {"trnid": [6, 1], "valid": [2, 3], "tstid": [4, 5]})
    files = {"image": Flowers102._file_dict["image"]}
    for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        files[key] = (name, hashlib.md5((root / name).read_bytes()).hexdigest())
    monkeypatch.setattr(Flowers102, "_file_dict", files)


def test_flowers102_reads_the_published_parts(flowers, load):
    assert parts_of(load("flowers102")) == [[60, 10], [20, 30], [40, 50]]


def test_flowers102_damaged_file_is_refused(flowers, set_folder, load):
    (set_folder / "flowers-102" / "setid.mat").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"no route|setid\.mat"):
        load("flowers102")


def test_flowers102_without_scipy_names_the_extra(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"\[flowers102\]"):
        load("flowers102")


# ------------------------------------------------------------------------------------------------------------ lsun


@pytest.fixture
def databases(monkeypatch):
    """A reader of LMDB databases that finds one picture in each, and the paths that it was asked for."""
    paths = []

    def lmdb_pictures(path):
        paths.append(path)
        return [Picture("0", lambda: io.BytesIO(picture(GRAYS[len(paths)])), "")]

    module = types.ModuleType("nvae.data.loaders.lmdb_files")
    module.lmdb_pictures = lmdb_pictures
    monkeypatch.setitem(sys.modules, "nvae.data.loaders.lmdb_files", module)
    monkeypatch.setitem(sys.modules, "lmdb", types.ModuleType("lmdb"))
    return paths


@pytest.mark.parametrize("category", ["bedroom", "church_outdoor"])
def test_lsun_reads_the_databases_of_a_class(set_folder, load, databases, category):
    expected = [set_folder / f"{category}_{part}_lmdb" for part in ("train", "val")]
    for folder in expected:
        folder.mkdir(parents=True)
    data = load("lsun", {"category": category})
    assert databases == expected
    assert (len(data.training), len(data.validation)) == (1, 1)


def test_lsun_is_downloaded_once(load, server, databases):
    urls = [f"http://dl.yf.io/lsun/scenes/tower_{part}_lmdb.zip" for part in ("train", "val")]
    server.files = {url: zipped({f"{url.split('/')[-1][:-4]}/data.mdb": b"1"}) for url in urls}
    for _ in range(2):
        assert len(load("lsun", {"category": "tower"}).training) == 1
    assert server.requests == urls


def test_lsun_without_lmdb_names_the_extra_before_the_download(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match=r"\[lmdb\]"):
        load("lsun")


def test_lsun_reads_databases_with_any_keys(set_folder, load):
    pytest.importorskip("nvae.data.loaders.lmdb_files", reason="there is no reader of LMDB databases")
    lmdb = pytest.importorskip("lmdb", reason="the extra 'lmdb' is not installed")
    set_folder.mkdir()
    for part, values in (("train", GRAYS[:3]), ("val", GRAYS[3:4])):
        path = str(set_folder / f"bedroom_{part}_lmdb")
        with lmdb.open(path, map_size=2**20) as database, database.begin(write=True) as transaction:
            for value in values:
                transaction.put(hashlib.sha1(bytes([value])).hexdigest().encode(), picture(value))
    data = load("lsun")
    assert sorted(grays(data.training)) == GRAYS[:3] and grays(data.validation) == [30]


def test_every_picture_set_has_a_list():
    assert set(public_pictures.LISTS) == {
        name for name, dataset in DATASETS.items() if issubclass(dataset, PublicPictureDataset)
    }
