"""Split a data set into the parts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nvae.data.cache import new_images
from nvae.data.images import CHUNK, Data, resize, select, to_grayscale
from nvae.schema import (
    NAMED_DATASETS,
    DownloadedDataset,
    FolderDataset,
    ModelConfig,
    NpzDataset,
    TfrecordDataset,
    ValidationChoice,
)
from nvae.system.errors import InvalidValueError
from nvae.system.memory_maps import chunks
from nvae.system.seeds import seeded

AnyHeldOut = FolderDataset | NpzDataset | TfrecordDataset | DownloadedDataset


def split(training: Tensor, held_out: Sequence[Tensor], dataset: AnyHeldOut) -> Data:
    """Return the parts of a data set, each uint8 (N, C, S, S).

    held_out: the validation images and the test images of the data set, where there are any. Without
    `validation_images`, the validation part is the first of them; without any, it has `validation_fraction` of the
    training images. With a number, the validation part has that number of training images, as `hold_out` chooses them,
    and the last of `held_out` is the test part. Raises InvalidValueError if no training image is left.
    """
    count = dataset.validation_images
    if count is None and held_out:
        test = held_out[1] if len(held_out) > 1 else None
        facts = NAMED_DATASETS.get(dataset.name)
        is_test = test is None and facts is not None and not facts.validation
        return Data(training, held_out[0], test, validation_is_test=is_test)
    if count is None:
        assert not isinstance(dataset, DownloadedDataset)  # these have images for validation or test
        count = min(max(round(dataset.validation_fraction * len(training)), 1), len(training) - 1)
    if count >= len(training):
        expected = f"at most {len(training) - 1:,}, because {dataset.name} has {len(training):,} training images"
        raise InvalidValueError("dataset.validation_images", count, expected)
    data = hold_out(training, count, dataset.validation_choice, dataset.split_seed)
    return replace(data, test=held_out[-1] if held_out else None)


def hold_out(images_u8: Tensor, count: int, choice: ValidationChoice = "random", seed: int = 0) -> Data:
    """Return the images with `count` of them for validation.

    choice, seed: the keys `validation_choice` and `split_seed`. The indices depend on both and on the numbers of images
    alone. Images keep their order in each part.
    """
    number = len(images_u8)
    if choice == "last":  # no copy
        return Data(images_u8[:-count], images_u8[-count:])
    if choice == "random":
        order = torch.randperm(number, generator=seeded(seed, "validation images"))
    else:
        order = torch.from_numpy(np.random.RandomState(seed).permutation(number))
    if choice == "numpy_last":
        order = order.flip(0)
    validation, training = (indices.sort().values for indices in (order[:count], order[count:]))
    return Data(select(images_u8, training), select(images_u8, validation))


def split_arrays(
    config: ModelConfig, training: Sequence[Tensor], held_out: Sequence[Tensor], pad: bool = False
) -> Data:
    """Return the parts of a public data set, as `split` does, with the size and the channels of a config.

    training: one or more tensors, uint8 (N, C, H, W) as all others. pad: pad images of 28x28 to 32x32 with black,
    two pixels on each side; to any other size, resample all.
    """
    assert isinstance(config.dataset, DownloadedDataset)
    channels, size = config.image_channels, config.input_dimension

    def fitted(images_u8: Tensor) -> Tensor:
        if images_u8.shape[1] > channels:
            images_u8 = to_grayscale(images_u8)
        if pad and size == 32 and images_u8.shape[2:] == (28, 28):
            return functional.pad(images_u8, (2, 2, 2, 2))
        return resize(images_u8, size)

    together = _concatenated([fitted(part) for part in training])
    data = split(together, [fitted(part) for part in held_out], config.dataset)
    return data.map(lambda images_u8: images_u8.expand(-1, channels, -1, -1))


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    result = new_images(sum(map(len, parts)), *parts[0].shape[1:])
    for part, place in zip(parts, result.split([len(part) for part in parts]), strict=True):
        for source, target in zip(chunks(part, CHUNK), place.split(CHUNK), strict=True):
            target.copy_(source)
    return result
