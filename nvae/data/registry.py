"""Load a data set by its name, and prepare its parts for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from nvae.data.images import Data, binarize, map_chunks, to_float
from nvae.data.loaders.folder import load_folder
from nvae.data.loaders.idx_sets import load_idx, load_stacked_mnist
from nvae.data.loaders.lmdb_files import load_lmdb
from nvae.data.loaders.npz import load_npz
from nvae.data.loaders.npz_sets import load_downsampled_imagenet, load_medmnist
from nvae.data.loaders.omniglot import load_omniglot
from nvae.data.loaders.public_pictures import LISTS, load_public_pictures
from nvae.data.loaders.tfrecord import load_tfrecord
from nvae.data.loaders.torchvision_sets import load_torchvision_set
from nvae.data.loaders.toy_faces import load_toy_faces
from nvae.data.sources import MEDMNIST_SETS
from nvae.schema import DownloadedDataset, ModelConfig, PictureDataset
from nvae.schema.choices import Part
from nvae.system.errors import UserError
from nvae.system.seeds import seeded

# Each loader takes the config and `progress`; those of a `PictureDataset` also take `cache`.
LOADERS: dict[str, Callable[..., Data]] = {
    "folder": load_folder,
    "lmdb": load_lmdb,
    "npz": load_npz,
    "tfrecord": load_tfrecord,
    "toy_faces": load_toy_faces,
    "omniglot": load_omniglot,
    "stacked_mnist": load_stacked_mnist,
    **dict.fromkeys(("mnist", "fashion_mnist", "kmnist", "emnist"), load_idx),
    **dict.fromkeys(("cifar10", "cifar100", "svhn", "stl10"), load_torchvision_set),
    **dict.fromkeys(("imagenet32", "imagenet64"), load_downsampled_imagenet),
    **dict.fromkeys(MEDMNIST_SETS, load_medmnist),
    **dict.fromkeys(LISTS, load_public_pictures),
}


class EvaluationImages(NamedTuple):
    """The images of an evaluation, both uint8 (N, C, S, S)."""

    images: Tensor  # for the encoder
    targets: Tensor  # for the likelihood


def load_data(config: ModelConfig, progress: bool = False, cache: bool = False) -> Data:
    """Load the data set of a config for training, with the config's `input_dimension` and `image_channels`.

    Where the encoder gets binary images, validation images are binarized here, once, so that the fingerprint is of the
    images that the encoder sees. Training images stay gray: every training step binarizes its batch.
    progress, cache: as for `load_original_images`. Raises UserError.
    """
    data = load_original_images(config, progress, cache)
    return replace(data, validation=evaluation_images(data, "validation", config).images)


def load_original_images(config: ModelConfig, progress: bool = False, cache: bool = False) -> Data:
    """Load the data set of a config without any binarization.

    progress: show a progress bar. cache: keep the images of picture files for later runs, however few they are; without
    effect on other data sets. Raises UserError.
    """
    options = {"cache": cache} if isinstance(config.dataset, PictureDataset) else {}
    return LOADERS[config.dataset.name](config, progress, **options)


def evaluation_images(data: Data, part: Part, config: ModelConfig) -> EvaluationImages:
    """Return the images of one part of a data set as the encoder and the likelihood need them.

    With `dataset.binarize`, the targets hold only 0 and 255, the same in every run, so that likelihoods are
    comparable. Images that are binary already stay as they are.
    Raises UserError for the test part of a data set without one.
    """
    images_u8 = getattr(data, part)
    if images_u8 is None:
        name = config.dataset.name
        reason = (
            "its held-out images are the validation part, because the model was not trained with "
            "dataset.validation_images"
            if isinstance(config.dataset, DownloadedDataset)
            else "it has training and validation images only"
        )
        raise UserError(f"{name} has no test part: {reason}. Evaluate on the validation part.")
    if not config.dataset.binarize:
        return EvaluationImages(images_u8, images_u8)
    generator = seeded(0, f"binarized {part}")

    def draw(chunk: Tensor) -> Tensor:
        return binarize(to_float(chunk, "cpu", config.pixel_bits), generator) * 255

    targets_u8 = map_chunks(draw, images_u8, images_u8.shape[1:])
    return EvaluationImages(images_u8 if config.dataset.encoder_input == "gray" else targets_u8, targets_u8)
