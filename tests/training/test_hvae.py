"""The config hvae, as it is in its file, on images of the named data sets' sizes."""

import math

import pytest
import torch

from nvae.config import load_config
from nvae.data.images import Data
from nvae.training.trainer import Trainer

from .helpers import advance

NAMES = [
    *("mnist", "fashion_mnist", "omniglot", "chestmnist", "pathmnist"),  # 28x28
    *("cifar10", "cifar100", "svhn", "imagenet32"),  # 32x32
    *("celeba", "tiny_imagenet", "dtd", "flowers102"),  # 64x64
    *("stl10", "lsun"),  # 96x96, 128x128
]


@pytest.mark.parametrize("name", NAMES)
def test_hvae_takes_steps_on_a_named_data_set(name):
    config = load_config("hvae", [f"dataset.name={name}", "training_parameters.batch_size=2"])
    shape = (5, config.image_channels, config.input_dimension, config.input_dimension)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(config, Data(images[:4], images[4:]), torch.device("cpu"))
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    metrics = advance(trainer, 2)
    assert all(math.isfinite(step["loss"].item()) and not step["skipped"] for step in metrics)
    changed = [not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)
