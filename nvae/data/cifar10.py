"""cifar10: read by torchvision, which downloads the data set if needed."""

from __future__ import annotations

import torch

from nvae.data.images import Data, resize, to_grayscale
from nvae.data.paths import dataset_folder
from nvae.data.splits import split
from nvae.errors import UserError
from nvae.schema import ModelConfig


def load_cifar10(config: ModelConfig, progress: bool = False) -> Data:
    """Load the 50,000 training images and the 10,000 test images. Raises UserError."""
    from torchvision.datasets import CIFAR10  # takes a second

    folder = dataset_folder(config.dataset)
    try:
        parts = [CIFAR10(folder, train=training, download=True).data for training in (True, False)]  # (N, 32, 32, 3)
    except (OSError, RecursionError) as error:  # RecursionError: endless redirects
        raise UserError(
            f"cifar10 is not complete in '{folder}' and cannot be downloaded ({error}). Copy {CIFAR10.filename} or the "
            f"folder {CIFAR10.base_folder} there, or set dataset.path to the folder that contains one of them."
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"{CIFAR10.base_folder} or {CIFAR10.filename} in '{folder}' is damaged: wrong checksum. Delete both to "
            "download cifar10 again."
        ) from error
    images = [torch.from_numpy(part.transpose(0, 3, 1, 2)) for part in parts]
    if config.image_channels == 1:
        images = [to_grayscale(part) for part in images]
    training, test = (resize(part, config.input_dimension) for part in images)
    return split(training, test, config.dataset)
