"""Split a public data set into the parts of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from nvae.data.images import Data
from nvae.errors import UserError
from nvae.schema import DownloadedDataset
from nvae.seeds import seeded


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
    order = torch.randperm(len(training), generator=seeded(dataset.split_seed, "validation images"))
    validation, remaining = (indices.sort().values for indices in (order[:count], order[count:]))
    return Data(training[remaining], training[validation], test)
