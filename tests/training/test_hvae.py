"""The config hvae, as it is in its file, on tiny fakes of the named data sets."""

import gzip
import math
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from nvae.config import load_config
from nvae.data.registry import load_data
from nvae.training.trainer import Trainer

from .helpers import advance

COUNT = 4  # images of each part


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, (COUNT, *shape), np.uint8)


def write_idx(folder):
    for part in ("train", "t10k"):
        content = struct.pack(">4i", 2051, COUNT, 28, 28) + noise(28, 28).tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))


def write_medmnist(*shape):
    def write(folder):
        arrays = {f"{part}_images": noise(*shape) for part in ("train", "val", "test")}
        np.savez(folder / f"{folder.name}.npz", **arrays)

    return write


def write_downsampled(folder):
    for name in ("train_data_batch_1", "val_data"):
        np.savez(folder / f"{name}.npz", data=noise(3 * 32 * 32))


def write_pictures(width, height, *subfolders):
    """Pictures 000000.jpg and so on in each subfolder; their numbers go on."""

    def write(folder):
        for first, subfolder in enumerate(subfolders):
            (folder / subfolder).mkdir(parents=True)
            for i, array in enumerate(noise(height, width, 3), COUNT * first):
                Image.fromarray(array).save(folder / subfolder / f"{i:06}.jpg")

    return write


def write_celeba(folder):
    write_pictures(178, 218, "celeba/img_align_celeba")(folder)
    parts = [f"{i:06}.jpg {part}" for i, part in enumerate((0, 0, 1, 2))]
    (folder / "celeba" / "list_eval_partition.txt").write_text("\n".join(parts))


FAKES = {  # writer, channels, size
    **dict.fromkeys(("mnist", "fashion_mnist", "kmnist"), (write_idx, 1, 28)),
    **dict.fromkeys(("chestmnist", "pneumoniamnist", "octmnist"), (write_medmnist(28, 28), 1, 28)),
    **dict.fromkeys(("pathmnist", "bloodmnist"), (write_medmnist(28, 28, 3), 3, 28)),
    **dict.fromkeys(("cifar10", "cifar100"), (write_pictures(32, 32, "train/cat", "test/cat"), 3, 32)),
    "imagenet32": (write_downsampled, 3, 32),
    "celeba": (write_celeba, 3, 64),
    "tiny_imagenet": (write_pictures(64, 64, "train/n01/images", "val/images", "test/images"), 3, 64),
    "imagenet": (write_pictures(150, 140, "train/n01", "val/n01"), 3, 128),
    "places365": (write_pictures(256, 256, "data_256/a/abbey", "val_256"), 3, 128),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAKES)
def test_hvae_takes_steps_on_a_named_data_set(name, tmp_path):
    write, channels, size = FAKES[name]
    folder = tmp_path / name
    folder.mkdir()
    write(folder)
    config = load_config("hvae", [f"dataset.name={name}", f"dataset.path={folder}", "training_parameters.batch_size=2"])
    data = load_data(config)
    assert data.training.shape[1:] == data.validation.shape[1:] == (channels, size, size)
    trainer = Trainer(config, data, torch.device("cpu"))
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    metrics = advance(trainer, 2)
    assert all(math.isfinite(step["loss"].item()) and not step["skipped"] for step in metrics)
    changed = [not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)
