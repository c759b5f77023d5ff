"""imagenet32, imagenet64 and the MedMNIST family: arrays in npz files of the publishers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from tqdm.auto import tqdm

from nvae.data.arrays import ArrayFile
from nvae.data.cache import new_images
from nvae.data.downloads import fetch
from nvae.data.extras import import_extra
from nvae.data.images import Data
from nvae.data.paths import dataset_folder
from nvae.data.sources import medmnist_suffix, obtain, source_files
from nvae.data.splits import split_arrays
from nvae.schema import NAMED_DATASETS, DownloadedDataset, ModelConfig
from nvae.system.errors import UserError

ADVICE = "Delete the file to get it again."


def load_medmnist(config: ModelConfig, progress: bool = False) -> Data:
    """Load the published training, validation and test images of the smallest size that is large enough.

    Raises UserError.
    """
    assert isinstance(config.dataset, DownloadedDataset)
    name, folder = config.dataset.name, dataset_folder(config.dataset)
    files = source_files(config.dataset, config.input_dimension)
    file = files["images"]
    if file.find(folder, name) is None:
        # The package knows the addresses and the checksums; a file that is there needs no package.
        advice = f", or download {file.url} by hand into '{folder}'"
        info = import_extra("medmnist.info", name, "medmnist", advice).INFO[name]
        suffix = medmnist_suffix(config.input_dimension)
        if f"url{suffix}" not in info:
            raise UserError(f"the package medmnist is too old for {file.name}. Update it: pip install -U medmnist.")
        file = file._replace(url=info[f"url{suffix}"], md5=info[f"MD5{suffix}"])
    path = fetch(name, {"images": file}, folder, NAMED_DATASETS[name].homepage, progress)["images"]
    stored = ArrayFile(path, ADVICE)
    training, validation, test = (_images(stored.read(f"{part}_images"), path) for part in ("train", "val", "test"))
    return split_arrays(config, [training], [validation, test])


def load_downsampled_imagenet(config: ModelConfig, progress: bool = False) -> Data:
    """Load the published training and validation images of imagenet32 or imagenet64. Raises UserError."""
    name, paths = config.dataset.name, obtain(config, progress)
    folders = {path.parent for part, path in paths.items() if part.startswith("training")}
    batches = [file for folder in folders for file in folder.glob("train_data_batch_*.npz")]
    batches.sort(key=lambda file: (len(file.stem), file.stem))  # batch 2 before batch 10
    side, files = NAMED_DATASETS[name].size, [ArrayFile(file, ADVICE) for file in (*batches, paths["validation"])]
    counts = [_count(file, name, side) for file in files]
    rows = new_images(sum(counts), 3 * side**2)
    bar = tqdm(files, f"reading {name}", unit=" files", leave=False, disable=not progress)
    for file, target in zip(bar, rows.split(counts), strict=True):
        target.copy_(file.read("data"))
    training, validation = rows.view(-1, 3, side, side).split([sum(counts[:-1]), counts[-1]])
    return split_arrays(config, [training], [validation])


def _count(file: ArrayFile, name: str, side: int) -> int:
    """Return the number of images of a file of rows of 3 * side * side numbers, from its header."""
    shape = file.uint8("data").shape
    if shape[1:] != (3 * side**2,):
        raise UserError(f"{file.path} does not hold the images of {name}: expected rows of {3 * side**2} numbers.")
    return shape[0]


def _images(array: Tensor, file: Path) -> Tensor:
    """Convert an array (N, H, W) or (N, H, W, 3) to images (N, C, H, W)."""
    if array.ndim == 3:
        return array[:, None]
    if array.ndim != 4 or array.shape[3] != 3:
        raise UserError(f"{file} does not hold images: got an array of shape {tuple(array.shape)}. Delete the file.")
    return array.permute(0, 3, 1, 2)
