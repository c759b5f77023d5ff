"""Public data sets of picture files: celeba, celeba_hq, ffhq, the large ImageNets, lsun, places365, dtd, flowers102."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from nvae.data.extras import import_extra
from nvae.data.images import Data
from nvae.data.paths import dataset_folder
from nvae.data.pictures.decoding import Picture, decode_parts, with_reports
from nvae.data.pictures.folders import list_pictures
from nvae.data.pictures.image_files import open_image
from nvae.data.pictures.report import is_other_file
from nvae.data.sources import obtain_and_read
from nvae.data.splits import split
from nvae.schema import DtdDataset, ModelConfig, PublicPictureDataset
from nvae.system.errors import UserError

CELEBA_SIZE = (178, 218)
CELEBA_BOX = (15, 40, 163, 188)  # of NVAE: 148 x 148 pixels around the face
CELEBA_PARTS = {"0": "training", "1": "validation", "2": "test"}
FLOWERS_PARTS = {"training": "trnid", "validation": "valid", "test": "tstid"}  # variables of setid.mat
TRAINING_SHARE = 0.9  # of the faces without a published split: NVAE's 27,000 and 63,000 images

Parts = dict[str, list[Picture]]


def load_public_pictures(config: ModelConfig, progress: bool = False, cache: bool = False) -> Data:
    """Load the published training, validation and test pictures of a data set.

    cache: keep the images for later runs, see `decode_pictures`. Raises UserError.
    """
    dataset = config.dataset
    assert isinstance(dataset, PublicPictureDataset)
    if dataset.name == "lsun":
        import_extra("lmdb", "lsun", "lmdb")
    if dataset.name == "flowers102":
        import_extra("scipy.io", "flowers102", "flowers102")
    list_parts = LISTS[dataset.name]
    parts = obtain_and_read(config, lambda paths: list_parts(paths, dataset), progress)
    source = str(dataset_folder(dataset))
    variant = [str(value) for key in ("category", "partition") if (value := getattr(dataset, key, None)) is not None]
    sources = {part: os.path.join(source, *variant, part) for part in parts}
    decoded = decode_parts({part: (sources[part], parts[part]) for part in parts}, config, progress, cache)
    images = {part: result.images_u8 for part, result in decoded.items()}
    data = split(images["training"], [images[part] for part in ("validation", "test") if part in images], dataset)
    return with_reports(data, *decoded.values())


def _picture(file: Path, folder: Path, open: Callable[[], Image.Image] | None = None) -> Picture:
    stat = file.stat()
    return Picture(
        file.relative_to(folder).as_posix(),
        open or (lambda: file.open("rb")),
        f"{stat.st_size} {stat.st_mtime_ns}",
    )


# ------------------------------------------------- the pictures of each part; `paths` are those of the `source_files`


def _folders(paths: dict[str, Path], dataset: PublicPictureDataset) -> Parts:
    """List a folder per part."""
    return {
        part: [picture._replace(name=f"{folder.name}/{picture.name}") for picture in list_pictures(folder)]
        for part, folder in paths.items()
    }


def _celeba(paths: dict[str, Path], dataset: PublicPictureDataset) -> Parts:
    """List the pictures as the file list_eval_partition.txt says: lines of a file name and the number of a part.

    The file of Kaggle has a first line of titles, and commas.
    """
    folder = paths["pictures"]
    parts: Parts = {part: [] for part in CELEBA_PARTS.values()}
    lines = paths["partition"].read_text("utf-8", "replace").splitlines()
    for line in lines[lines[:1] == ["image_id,partition"] :]:
        name, _, number = line.strip().replace(",", " ").partition(" ")
        if number not in CELEBA_PARTS:
            raise UserError(f"{paths['partition']}: got '{line[:100]}', expected a file name and 0, 1 or 2 per line.")
        file = folder / Path(name).name
        opened = partial(_open_face, file, dataset.max_image_pixels)
        parts[CELEBA_PARTS[number]].append(_picture(file, folder, opened))
    return parts


def _open_face(file: Path, max_pixels: int) -> Image.Image:
    """Open a picture of CelebA, cropped to the face. A picture of another size has been cropped already."""
    with open_image(file, max_pixels) as image:
        return image.crop(CELEBA_BOX) if image.size == CELEBA_SIZE else image.copy()


def _faces(paths: dict[str, Path], dataset: PublicPictureDataset) -> Parts:
    """List faces: NVAE's databases, folders train and val, or else the first nine tenths by path for training."""
    found, folder = paths["pictures"], dataset_folder(dataset)
    if found.name == "train.lmdb":
        return _databases({"training": found, "validation": found.with_name("validation.lmdb")}, dataset)
    if found.name == "val" and (training := found.with_name("train")).is_dir():
        return _folders({"training": training, "validation": found}, dataset)
    if found.name == "val":
        found = folder
    folder = found if found.is_dir() else folder
    pictures = [picture for picture in list_pictures(folder) if not is_other_file(picture.name)]
    count = min(max(1, round(TRAINING_SHARE * len(pictures))), len(pictures) - 1)
    return {"training": pictures[:count], "validation": pictures[count:]}


def _databases(paths: dict[str, Path], dataset: PublicPictureDataset) -> Parts:
    from nvae.data.loaders.lmdb_files import lmdb_pictures

    return {part: lmdb_pictures(path) for part, path in paths.items()}


def _flowers(paths: dict[str, Path], dataset: PublicPictureDataset) -> Parts:
    """List the pictures as setid.mat says: the numbers of the pictures of each part."""
    from scipy.io import loadmat

    folder = paths["pictures"]
    try:
        numbers = loadmat(paths["parts"], variable_names=FLOWERS_PARTS.values())
    except Exception as error:  # scipy raises almost any exception for a damaged file
        raise OSError(f"{paths['parts']}: {error}") from error
    return {
        part: [_picture(folder / f"image_{number:05}.jpg", folder) for number in numbers[key].flat]
        for part, key in FLOWERS_PARTS.items()
    }


def _textures(paths: dict[str, Path], dataset: PublicPictureDataset) -> Parts:
    """List the pictures as the lists of a partition say, such as labels/train1.txt."""
    assert isinstance(dataset, DtdDataset)
    labels = paths["pictures"].parent
    folder, parts = labels.with_name("images"), {"training": "train", "validation": "val", "test": "test"}
    return {
        part: [
            _picture(folder / line, folder) for line in (labels / f"{name}{dataset.partition}.txt").read_text().split()
        ]
        for part, name in parts.items()
    }


LISTS: dict[str, Callable[[dict[str, Path], PublicPictureDataset], Parts]] = {
    "celeba": _celeba,
    "celeba_hq": _faces,
    "ffhq": _faces,
    "tiny_imagenet": _folders,
    "imagenet": _folders,
    "places365": _folders,
    "lsun": _databases,
    "flowers102": _flowers,
    "dtd": _textures,
}
