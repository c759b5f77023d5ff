"""Split a public data set into the parts of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from nvae.data.cache import new_images
from nvae.data.images import CHUNK, Data, pad_or_resize, resize, select, to_grayscale
from nvae.schema import DownloadedDataset, ModelConfig
from nvae.system.errors import UserError
from nvae.system.memory_maps import chunks
from nvae.system.seeds import seeded


def split(training: Tensor, test: Tensor | None, dataset: DownloadedDataset, validation: Tensor | None = None) -> Data:
    """Return the parts of a public data set, each uint8 (N, C, S, S).

    validation: the published validation images, None for a data set without them. Without `validation_images`, the
    validation part is the published one, or else the test images. With a number, the validation part has that number of
    random training images, and published validation images become test images where there are no test images.
    The choice depends on `split_seed` and the numbers of images alone. Images keep their order in each part. Raises
    UserError if no training image is left.
    """
    count = dataset.validation_images
    if count is None:
        return Data(training, test) if validation is None else Data(training, validation, test)
    test = validation if test is None else test
    if count >= len(training):
        raise UserError(
            f"dataset.validation_images: got {count:,}, expected at most {len(training) - 1:,}, because {dataset.name} "
            f"has {len(training):,} training images."
        )
    return replace(hold_out(training, count, dataset.split_seed), test=test)


def hold_out(images_u8: Tensor, count: int, seed: int = 0) -> Data:
    """Return the images with `count` random ones for validation; the choice depends on the number of images alone."""
    order = torch.randperm(len(images_u8), generator=seeded(seed, "validation images"))
    validation, training = (indices.sort().values for indices in (order[:count], order[count:]))
    return Data(select(images_u8, training), select(images_u8, validation))


def split_arrays(
    config: ModelConfig,
    training: Iterable[Tensor],
    test: Tensor | None,
    validation: Tensor | None = None,
    pad: bool = False,
) -> Data:
    """Return the parts of a public data set, as `split` does, with the size and the channels of a config.

    training: one or more tensors, uint8 (N, C, H, W) as all others. pad: pad images of 28x28 to 32x32 with black.
    """
    channels, size = config.image_channels, config.input_dimension

    def fitted(images_u8: Tensor) -> Tensor:
        if images_u8.shape[1] > channels:
            images_u8 = to_grayscale(images_u8)
        return pad_or_resize(images_u8, size) if pad else resize(images_u8, size)

    data = split(
        _concatenated([fitted(part) for part in training]),
        None if test is None else fitted(test),
        config.dataset,
        None if validation is None else fitted(validation),
    )
    return data.map(lambda images_u8: images_u8.expand(-1, channels, -1, -1))


def _concatenated(parts: list[Tensor]) -> Tensor:
    """Concatenate and remove the parts of a list, one by one, so that no image is in memory twice."""
    if len(parts) == 1:
        return parts.pop()
    result = new_images(sum(map(len, parts)), *parts[0].shape[1:])
    end = len(result)
    while parts:
        part = parts.pop()
        end -= len(part)
        for source, target in zip(chunks(part, CHUNK), result[end : end + len(part)].split(CHUNK), strict=True):
            target.copy_(source)
    return result
