"""Split a public data set into the parts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from nvae.data.cache import new_images
from nvae.data.images import CHUNK, Data, resize, select, to_grayscale
from nvae.schema import NAMED_DATASETS, DownloadedDataset, ModelConfig
from nvae.system.errors import UserError
from nvae.system.memory_maps import chunks
from nvae.system.seeds import seeded


def split(training: Tensor, held_out: Sequence[Tensor], dataset: DownloadedDataset) -> Data:
    """Return the parts of a public data set, each uint8 (N, C, S, S).

    held_out: the published validation images, where there are any, and the published test images, where there are any.
    Without `validation_images`, the validation part is the first of them. With a number, the validation part has that
    number of random training images, and the last of them is the test part.
    The choice depends on `split_seed` and the numbers of images alone. Images keep their order in each part. Raises
    UserError if no training image is left.
    """
    count = dataset.validation_images
    if count is None:
        test = held_out[1] if len(held_out) > 1 else None
        is_test = test is None and not NAMED_DATASETS[dataset.name].validation
        return Data(training, held_out[0], test, validation_is_test=is_test)
    if count >= len(training):
        raise UserError(
            f"dataset.validation_images: got {count:,}, expected at most {len(training) - 1:,}, because {dataset.name} "
            f"has {len(training):,} training images."
        )
    return replace(hold_out(training, count, dataset.split_seed), test=held_out[-1])


def hold_out(images_u8: Tensor, count: int, seed: int = 0) -> Data:
    """Return the images with `count` random ones for validation; the choice depends on the number of images alone."""
    order = torch.randperm(len(images_u8), generator=seeded(seed, "validation images"))
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
