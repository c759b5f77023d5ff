"""Where the files of the named data sets come from, and how they are laid out on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nvae.data.downloads import SourceFile, fetch
from nvae.data.paths import dataset_folder
from nvae.schema import NAMED_DATASETS, DownloadedDataset, ModelConfig
from nvae.system.errors import UserError, is_out_of_memory

Result = TypeVar("Result")
Files = dict[str, SourceFile]

EXTRAS = {"omniglot": "omniglot", "svhn": "svhn", "flowers102": "flowers102", "lsun": "lmdb", "lmdb": "lmdb"}
IDX_FILES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION_MNIST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
KMNIST = "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"
CIFAR = "https://www.cs.toronto.edu/~kriz/"
STL10 = "http://ai.stanford.edu/~acoates/stl10/"
LSUN = "http://dl.yf.io/lsun/scenes/"
DTD = "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/"
OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
SVHN = "http://ufldl.stanford.edu/housenumbers/"
FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
PLACES = "http://data.csail.mit.edu/places/places365/"
GOOGLE_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
MEDMNIST = "https://zenodo.org/records/10519652/files/"
MEDMNIST_SETS = tuple(name for name, facts in NAMED_DATASETS.items() if facts.homepage == "https://medmnist.com")
MEDMNIST_SIZES = (28, 64, 128, 224)
PICTURES = tuple(f"{folder}*.{suffix}" for folder in ("", "*/") for suffix in ("png", "jpg", "jpeg", "webp"))


def obtain(config: ModelConfig, progress: bool = False, again: bool = False) -> dict[str, Path]:
    """Return where the content of each of the `source_files` is, after downloading what is missing.

    again: repeat downloads and the unpacking of archives. Raises UserError.
    """
    dataset = config.dataset
    files = source_files(dataset, config.input_dimension)
    homepage = NAMED_DATASETS[dataset.name].homepage
    return fetch(dataset.name, files, dataset_folder(dataset), homepage, progress, again)


def obtain_and_read(config: ModelConfig, read: Callable[[dict[str, Path]], Result], progress: bool = False) -> Result:
    """Return what `read` reads from the files of a data set; files that it refuses are obtained again, once.

    read: raises RuntimeError or OSError for files that are damaged or missing, as torchvision's data sets do.
    Raises UserError.
    """
    name = config.dataset.name
    for again in (False, True):
        paths = obtain(config, progress, again)
        try:
            return read(paths)
        except (RuntimeError, OSError) as error:
            if is_out_of_memory(error):
                raise
            reason = error
    folder = dataset_folder(config.dataset)
    raise UserError(f"{name} in '{folder}' is damaged ({reason}). Delete its files to download it again.") from reason


def extra_of(name: str) -> str | None:
    """Return the name of the extra that a data set needs, None if it needs none."""
    return "medmnist" if name in MEDMNIST_SETS else EXTRAS.get(name)


def source_files(dataset: DownloadedDataset, size: int) -> Files:
    """Return the files of a data set that its loader reads, by the part or the role of each.

    size: width and height of the images of the model; some data sets are published in several sizes.
    """
    if dataset.name in MEDMNIST_SETS:
        file = f"{dataset.name}{medmnist_suffix(size)}.npz"
        return {"images": SourceFile(file, f"{MEDMNIST}{file}?download=1", starts_with=b"PK")}
    files = SOURCES[dataset.name]
    return files(dataset) if callable(files) else files


def medmnist_suffix(size: int) -> str:
    """Return the ending of the file with the smallest published images of at least this size, or the largest ones."""
    published = next((known for known in MEDMNIST_SIZES if known >= size), MEDMNIST_SIZES[-1])
    return "" if published == MEDMNIST_SIZES[0] else f"_{published}"


def _archive(name: str, address: str, md5: str, *found_as: str) -> SourceFile:
    """Describe an archive that is unpacked into the folder that it is in.

    address: of the archive, or of the publisher's folder with a slash at the end.
    """
    url = address + Path(name).name if address.endswith("/") else address
    return SourceFile(name, url, md5, unpack_to=str(Path(name).parent), found_as=found_as)


def _idx(class_name: str, address: str, *md5: str) -> Files:
    """Describe the files of mnist and its relatives: in the folder, or where torchvision's class puts them."""
    files = {}
    for part, file, digest in zip(("training", "test"), IDX_FILES, md5, strict=True):
        found_as = tuple(folder + file + suffix for folder in ("", f"{class_name}/raw/") for suffix in ("", ".gz"))
        files[part] = SourceFile(f"{file}.gz", f"{address}{file}.gz", digest, found_as=found_as)
    return files


def _emnist(dataset: DownloadedDataset) -> Files:
    url, md5 = "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip", "58c8d27c78d21e728a6bc7b3cc06412e"
    files = {}
    for part, name in (("training", "train"), ("test", "test")):
        file = f"emnist-{dataset.version}-{name}-images-idx3-ubyte"
        folders = ("", "gzip/", "EMNIST/raw/", "EMNIST/raw/gzip/")
        files[part] = _archive(
            "gzip.zip", url, md5, *(folder + file + end for folder in folders for end in ("", ".gz"))
        )
    return files


def _omniglot(dataset: DownloadedDataset) -> Files:
    if dataset.version == "chardata":
        url = "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat"
        return {"images": SourceFile("chardata.mat", url, starts_with=b"MATLAB")}
    background, evaluation = "omniglot-py/images_background", "omniglot-py/images_evaluation"
    return {
        "training": _archive(f"{background}.zip", OMNIGLOT, "68d2efa1b9178cc56df9314c21c6e718", background),
        "test": _archive(f"{evaluation}.zip", OMNIGLOT, "6b91aef0f799c5bb55b94e3f2daec811", evaluation),
    }


def _cifar(name: str, folder: str, md5: str, training: str, test: str) -> Files:
    """Describe the batches of Python, or folders train and test with pictures of the original size."""
    return {
        "training": _archive(name, CIFAR, md5, f"{folder}/{training}", "train"),
        "test": _archive(name, CIFAR, md5, f"{folder}/{test}", "test"),
    }


def _svhn(dataset: DownloadedDataset) -> Files:
    md5 = {
        "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test": "eb5a983be6a315427106f1b164d9cef3",
        "extra": "a93ce644f1a588dc4d68dda5feec44a7",
    }
    files = {split: f"{split}_32x32.mat" for split in md5 if split != "extra" or dataset.extra}
    return {split: SourceFile(file, SVHN + file, md5[split]) for split, file in files.items()}


def _lsun(dataset: DownloadedDataset) -> Files:
    folders = {"training": f"{dataset.category}_train_lmdb", "validation": f"{dataset.category}_val_lmdb"}
    return {part: _archive(f"{folder}.zip", LSUN, "", folder) for part, folder in folders.items()}


def _faces(*folders: str) -> Files:
    """Describe a set of pictures in any folders, or the databases of the original NVAE; of several, the first."""
    return {"pictures": SourceFile(folders[0], found_as=("train.lmdb", *folders, *PICTURES))}


def _downsampled(archive: str, file: str) -> SourceFile:
    """Describe an archive of npz files, and one of these files."""
    return SourceFile(archive, unpack_to=".", found_as=(file, f"*/{file}"))


# The files of each data set, or a function of its section of the config.
SOURCES: dict[str, Files | Callable[..., Files]] = {
    "mnist": _idx("MNIST", MNIST, "f68b3c2dcbeaaa9fbdd348bbdeb94873", "9fb629c4189551a2d022fa330f9573f3"),
    "fashion_mnist": _idx(
        "FashionMNIST", FASHION_MNIST, "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "bef4ecab320f06d8554ea6380940ec79"
    ),
    "kmnist": _idx("KMNIST", KMNIST, "bdb82020997e1d708af4cf47b453dcf7", "5c965bf0a639b31b8f53240b1b52f4d7"),
    "emnist": _emnist,
    "omniglot": _omniglot,
    "cifar10": _cifar(
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        "c58f30108f718f92721af3b95e74349a",
        "data_batch_1",
        "test_batch",
    ),
    "cifar100": _cifar(
        "cifar-100-python.tar.gz", "cifar-100-python", "eb9058c3a382ffc7106e4002c42a8d85", "train", "test"
    ),
    "svhn": _svhn,
    "stl10": {
        "images": _archive(
            "stl10_binary.tar.gz", STL10, "91f7769df0f17e558f3565bffb0c7dfb", "stl10_binary/unlabeled_X.bin"
        )
    },
    "celeba": {
        "pictures": _archive(
            "celeba/img_align_celeba.zip",
            f"{GOOGLE_DRIVE}0B7EVK8r0v71pZjFTYXZWM3FlRnM",
            "00d2c5bc6d35e252742224ab0c1e8fcb",
            *("celeba/img_align_celeba", "img_align_celeba"),
        ),
        "partition": SourceFile(
            "celeba/list_eval_partition.txt",
            f"{GOOGLE_DRIVE}0B7EVK8r0v71pY0NSMzRuSXJEVkk",
            "d32c9cbf5e040fd4025c592c306e6668",
            found_as=("celeba/list_eval_partition.txt", "list_eval_partition.txt"),
        ),
    },
    "celeba_hq": _faces("CelebA-HQ-img", "CelebAMask-HQ/CelebA-HQ-img"),
    "ffhq": _faces("images1024x1024", "thumbnails128x128"),
    "imagenet32": {
        "training": _downsampled("Imagenet32_train_npz.zip", "train_data_batch_1.npz"),
        "validation": _downsampled("Imagenet32_val_npz.zip", "val_data.npz"),
    },
    "imagenet64": {
        "training": _downsampled("Imagenet64_train_part1_npz.zip", "train_data_batch_1.npz"),
        "training_2": _downsampled("Imagenet64_train_part2_npz.zip", "train_data_batch_10.npz"),
        "validation": _downsampled("Imagenet64_val_npz.zip", "val_data.npz"),
    },
    "tiny_imagenet": {
        part: _archive(
            "tiny-imagenet-200.zip",
            "http://cs231n.stanford.edu/",
            "90528d7ca1a48142e341f4ef8d21d0de",
            *(f"tiny-imagenet-200/{folder}", folder),
        )
        for part, folder in (("training", "train"), ("validation", "val"), ("test", "test"))
    },
    "imagenet": {
        "training": SourceFile(
            "ILSVRC2012_img_train.tar", md5="1d675b47d978889d74fa0da5fadfb00e", unpack_to="train", found_as=("train",)
        ),
        "validation": SourceFile(
            "ILSVRC2012_img_val.tar", md5="29b22e2961454d5413ddabcf34fc5622", unpack_to="val", found_as=("val",)
        ),
    },
    "lsun": _lsun,
    "dtd": {"pictures": _archive("dtd/dtd-r1.0.1.tar.gz", DTD, "fff73e5086ae6bdbea199a49dfb8a4c1", "dtd/dtd")},
    "places365": {
        "training": _archive(
            "train_256_places365standard.tar",
            PLACES,
            "53ca1c756c3d1e7809517cc47c5561c5",
            *("data_256_standard", "data_256"),
        ),
        "validation": _archive("val_256.tar", PLACES, "e27b17d8d44f4af9a78502beb927f808", "val_256"),
    },
    "flowers102": {
        "pictures": _archive(
            "flowers-102/102flowers.tgz", FLOWERS, "52808999861908f626f3c1f4e79d11fa", "flowers-102/jpg"
        ),
        "labels": SourceFile(
            "flowers-102/imagelabels.mat", f"{FLOWERS}imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"
        ),
        "parts": SourceFile("flowers-102/setid.mat", f"{FLOWERS}setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
    },
}
