"""cifar10: from where it lies, else downloaded, by torchvision."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets import CIFAR10

from nvae.data.images import HOW_TO_SAY, Data, gray, resized
from nvae.errors import UserError
from nvae.schema import ModelConfig


def load_cifar10(config: ModelConfig) -> Data:
    """The 50,000 images for training, and the set's own 10,000 test images for validation. Raises UserError."""
    folder = Path(config.dataset.path).expanduser()
    try:
        parts = [CIFAR10(folder, train=training, download=True).data for training in (True, False)]  # (N, 32, 32, 3)
    except (OSError, RecursionError) as error:  # the latter where a network redirects for ever
        raise UserError(
            f"cifar10 is not whole in '{folder}' and cannot be downloaded ({error}); put {CIFAR10.filename} or the "
            f"folder {CIFAR10.base_folder} there, or say where they are {HOW_TO_SAY}."
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"{CIFAR10.base_folder} or {CIFAR10.filename} in '{folder}' is damaged, as its checksums say; delete both "
            "and cifar10 is downloaded again."
        ) from error
    images = [torch.from_numpy(part.transpose(0, 3, 1, 2)) for part in parts]
    if config.image_channels == 1:
        images = [gray(part) for part in images]
    return Data(*(resized(part, config.input_dimension) for part in images))
