"""Working directories for the commands: with trained models and pictures, or with one tiny config."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvae.checkpoint import save
from nvae.config import load_config
from nvae.training.loop import train

TINY_YAML = """
channel_towers: 4
number_of_scales: 2
initial_splits_per_scale: 1
latent_size: 2
input_dimension: 8
num_blocks_prepost: 1
num_cells_per_block_prepost: 1
cells_per_split_enc: 1
cells_per_input_dec: 1
sampling_method: logistic_mixture
dataset: {name: toy_faces, training_images: 24, validation_images: 8}
training_parameters: {batch_size: 8, epochs: 2, epochs_per_checkpoint: 1, warmup_epochs: 1}
"""


@pytest.fixture(scope="session")
def models(make_model, tmp_path_factory):
    """Two models of four latent groups on two scales: saved_weights/tiny.checkpoint and other.model.

    Their posteriors are far from their priors, so that pictures matter.
    """

    def make(seed=0):
        model = make_model(seed, sampling_method="logistic_mixture")  # its mean is not its most likely value
        for group in model.groups:
            group.posterior_head.parametrizations.weight.original0.data.mul_(30)
            group.decoder_combiner.parametrizations.weight.original0.data.mul_(3)
        return model

    folder = tmp_path_factory.mktemp("models")
    save(make(), folder / "tiny.checkpoint")
    save(make(seed=1), folder / "final_result_other.model")
    return folder


@pytest.fixture
def tools(folder, models):
    """A working directory with the models, and two pictures: wide.png, and right.png that has the models' size."""
    shutil.copytree(models, folder / "saved_weights")
    ramp = np.linspace(0, 255, 20 * 14 * 3).astype(np.uint8)
    Image.fromarray(ramp.reshape(14, 20, 3)).save("wide.png")
    Image.fromarray(ramp[: 8 * 8 * 3].reshape(8, 8, 3)[::-1] + 100).save("right.png")
    return folder


@pytest.fixture
def configs(folder):
    """A working directory with one tiny config, little.yaml."""
    (folder / "model_configs").mkdir()
    (folder / "model_configs" / "little.yaml").write_text(TINY_YAML)
    return folder


@pytest.fixture(scope="session")
def train_in_two_runs(tmp_path_factory):
    """A function: a new folder with a config, and the model that was trained from it, interrupted after an epoch."""

    def train_in_two_runs(name, text):
        folder = tmp_path_factory.mktemp(name)
        (folder / f"{name}.yaml").write_text(text)
        for changes in (["training_parameters.epochs=1"], []):
            train(load_config(folder / f"{name}.yaml", changes), name, "cpu", folder=folder, progress=False)
        return folder

    return train_in_two_runs


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    """A folder with one tiny config, and the model that was trained from it for an epoch."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "model_configs").mkdir()
    (folder / "model_configs" / "little.yaml").write_text(TINY_YAML)
    config = load_config(str(folder / "model_configs" / "little.yaml"), ["training_parameters.epochs=1"])
    train(config, "little", "cpu", folder=folder, progress=False)
    return folder


@pytest.fixture
def trained(folder, trained_once):
    """A working directory with one tiny config, and the model that was trained from it."""
    shutil.copytree(trained_once, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def typed(monkeypatch):
    """A function that sets the typed input of the next command."""
    return lambda *lines: monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


class Files:
    """Functions about files, as static methods."""

    @staticmethod
    def all(folder):
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    @staticmethod
    def names(folder="images"):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    @staticmethod
    def only(folder="images"):
        (name,) = os.listdir(folder)
        return Path(folder, name)

    @staticmethod
    def texts(path):
        with Image.open(path) as picture:
            return picture.text

    @staticmethod
    def pixels(path):
        with Image.open(path) as picture:
            return np.asarray(picture, int)

    @staticmethod
    def seeds(path):
        return [cell["seed"] for cell in json.loads(Path(path).read_text())["cells"]]


@pytest.fixture
def files():
    """Functions about files."""
    return Files


@pytest.fixture
def all_differ():
    """A function: whether all arrays are different."""
    return lambda arrays: len({array.tobytes() for array in arrays}) == len(arrays)
