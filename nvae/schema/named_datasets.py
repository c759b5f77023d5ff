"""The public data sets that a config can name: what is known about each without loading it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple


class NamedDataset(NamedTuple):
    """Facts about a data set. A part without published images has 0 images.

    binarize, horizontal_flip and pixel_bits are the literature's choice for generative models of this data set, which
    a config takes with the value `auto`: those of NVAE (Vahdat and Kautz 2020) for the sets of its experiments and its
    program (mnist, omniglot, cifar10, celeba, celeba_hq, ffhq, imagenet32, imagenet64, lsun). Natural images of other
    sets are mirrored too; textures, digits and medical images are not.
    """

    title: str
    channels: int
    size: int  # width and height, of the images or, for pictures of other sizes, usual in the literature
    training: int
    validation: int
    test: int
    license: str
    homepage: str
    binarize: bool = False
    horizontal_flip: bool = False
    pixel_bits: int = 8
    keys: Literal["arrays", "pictures", "own"] = "arrays"  # of the config: those of all arrays, of all pictures, or own


NOT_STATED = "not stated"
RESEARCH = "non-commercial research"
IMAGENET = "https://image-net.org/download-images.php"
MEDMNIST = "https://medmnist.com"
CELEBA = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
CELEBA_HQ = "https://github.com/switchablenorms/CelebAMask-HQ"
CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
DTD = "https://www.robots.ox.ac.uk/~vgg/data/dtd"
EMNIST = "https://www.nist.gov/itl/products-and-services/emnist-dataset"
FASHION_MNIST = "https://github.com/zalandoresearch/fashion-mnist"
FFHQ = "https://github.com/NVlabs/ffhq-dataset"
FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
OMNIGLOT = "https://github.com/brendenlake/omniglot"
STL10 = "https://cs.stanford.edu/~acoates/stl10"
SVHN = "http://ufldl.stanford.edu/housenumbers"


def _natural(title: str, size: int, *facts: Any, **options: Any) -> NamedDataset:
    """Describe natural images in color, which are mirrored. The other arguments are those from `training` on."""
    return NamedDataset(title, 3, size, *facts, horizontal_flip=True, **options)


def _medmnist(
    title: str, channels: int, training: int, validation: int, test: int, license: str = "CC BY 4.0"
) -> NamedDataset:
    return NamedDataset(title, channels, 28, training, validation, test, license, MEDMNIST)


NAMED_DATASETS: dict[str, NamedDataset] = {
    "mnist": NamedDataset(
        "handwritten digits", 1, 28, 60_000, 0, 10_000, "CC BY-SA 3.0", "http://yann.lecun.com/exdb/mnist", True
    ),
    "fashion_mnist": NamedDataset("clothes", 1, 28, 60_000, 0, 10_000, "MIT", FASHION_MNIST),
    "kmnist": NamedDataset(
        "cursive Japanese characters", 1, 28, 60_000, 0, 10_000, "CC BY-SA 4.0", "https://codh.rois.ac.jp/kmnist", True
    ),
    "emnist": NamedDataset(
        "handwritten letters and digits", 1, 28, 112_800, 0, 18_800, NOT_STATED, EMNIST, True, keys="own"
    ),
    "omniglot": NamedDataset("handwritten characters", 1, 28, 24_345, 0, 8_070, "MIT", OMNIGLOT, True, keys="own"),
    "cifar10": _natural("objects and animals, 10 classes", 32, 50_000, 0, 10_000, NOT_STATED, CIFAR),
    "cifar100": _natural("objects and animals, 100 classes", 32, 50_000, 0, 10_000, NOT_STATED, CIFAR),
    "svhn": NamedDataset("house numbers", 3, 32, 73_257, 0, 26_032, "non-commercial", SVHN, keys="own"),
    "stl10": _natural("objects and animals, mostly unlabeled", 96, 105_000, 0, 8_000, NOT_STATED, STL10),
    "celeba": _natural("faces of celebrities", 64, 162_770, 19_867, 19_962, RESEARCH, CELEBA, keys="pictures"),
    "celeba_hq": _natural(
        "faces of celebrities in high quality",
        256,
        27_000,
        3_000,
        0,
        RESEARCH,
        CELEBA_HQ,
        pixel_bits=5,
        keys="pictures",
    ),
    "ffhq": _natural(
        "faces from Flickr", 256, 63_000, 7_000, 0, "CC BY-NC-SA 4.0", FFHQ, pixel_bits=5, keys="pictures"
    ),
    "imagenet32": _natural("ImageNet at 32 x 32", 32, 1_281_167, 50_000, 0, RESEARCH, IMAGENET),
    "imagenet64": _natural("ImageNet at 64 x 64", 64, 1_281_167, 50_000, 0, RESEARCH, IMAGENET),
    "tiny_imagenet": _natural(
        "200 classes of ImageNet", 64, 100_000, 10_000, 10_000, RESEARCH, "http://cs231n.stanford.edu", keys="pictures"
    ),
    "imagenet": _natural("1,000 classes of objects", 128, 1_281_167, 50_000, 0, RESEARCH, IMAGENET, keys="pictures"),
    "lsun": _natural(
        "scenes, one class at a time", 128, 3_033_042, 300, 0, NOT_STATED, "https://www.yf.io/p/lsun", keys="own"
    ),
    "dtd": NamedDataset("textures", 3, 64, 1_880, 1_880, 1_880, RESEARCH, DTD, keys="own"),
    "places365": _natural(
        "scenes, 365 classes", 128, 1_803_460, 36_500, 0, RESEARCH, "http://places2.csail.mit.edu", keys="pictures"
    ),
    "flowers102": _natural("flowers, 102 classes", 64, 1_020, 1_020, 6_149, NOT_STATED, FLOWERS, keys="pictures"),
    "pathmnist": _medmnist("colon tissue", 3, 89_996, 10_004, 7_180),
    "chestmnist": _medmnist("chest X-rays", 1, 78_468, 11_219, 22_433),
    "dermamnist": _medmnist("skin lesions", 3, 7_007, 1_003, 2_005, "CC BY-NC 4.0"),
    "octmnist": _medmnist("retinas, optical coherence tomography", 1, 97_477, 10_832, 1_000),
    "pneumoniamnist": _medmnist("chest X-rays of children", 1, 4_708, 524, 624),
    "retinamnist": _medmnist("retinas", 3, 1_080, 120, 400),
    "breastmnist": _medmnist("breasts, ultrasound", 1, 546, 78, 156),
    "bloodmnist": _medmnist("blood cells", 3, 11_959, 1_712, 3_421),
    "tissuemnist": _medmnist("kidney cells", 1, 165_466, 23_640, 47_280),
    "organamnist": _medmnist("abdominal organs, axial slices", 1, 34_561, 6_491, 17_778),
    "organcmnist": _medmnist("abdominal organs, coronal slices", 1, 12_975, 2_392, 8_216),
    "organsmnist": _medmnist("abdominal organs, sagittal slices", 1, 13_932, 2_452, 8_827),
}
