"""Every tool works on a family without batch norms, whose state is a tuple: the Ladder VAE."""

import json
import shutil

import pytest
import torch
from PIL import Image

from nvae.checkpoint import load

LADDER_YAML = """
family: ladder
input_dimension: 8
latents_per_scale: [1, 2]
latent_size: 2
channels: 8
encoder_blocks_per_scale: 1
sampling_method: logistic_mixture
dataset: {name: toy_faces, training_images: 24, validation_images: 8}
training_parameters: {batch_size: 8, epochs: 2, epochs_per_checkpoint: 1, evaluation_samples: 2}
"""


@pytest.fixture(scope="module")
def ladder_once(train_in_two_runs):
    return train_in_two_runs("ladder", LADDER_YAML)


@pytest.fixture
def ladder(folder, ladder_once):
    """A working directory with a Ladder VAE, trained in two runs."""
    return shutil.copytree(ladder_once, folder, dirs_exist_ok=True)


@pytest.mark.slow
def test_ladder_resumed_training_equals_one_run(ladder, command):
    two_runs = load("saved_weights/ladder.checkpoint")
    assert command("train.py", "ladder.yaml", "--name", "whole").code == 0
    whole = load("saved_weights/whole.checkpoint")
    assert whole["training"]["progress"] == two_runs["training"]["progress"]
    assert all(torch.equal(two_runs["weights"][name], tensor) for name, tensor in whole["weights"].items())
    assert len(whole["metadata"]["kl_per_group"]) == 3


@pytest.mark.slow
def test_ladder_works_with_every_tool(ladder, command, typed):
    Image.new("RGB", (8, 8), "red").save("a.png")
    Image.new("RGB", (8, 8), "blue").save("b.png")
    result = command("sample.py", "ladder", "0.7", "5", "--seed", "1", "--out", "s.png")
    assert result.code == 0 and "batch norm" in result.out  # recalibration says so and goes on
    assert command("sample.py", "ladder", "0.7", "5", "--seed", "1", "--out", "again.png").code == 0
    assert list(Image.open("s.png").getdata()) == list(Image.open("again.png").getdata())
    typed("1 2 3", "", "")
    assert command("cherry.py", "ladder", "0.7", "5", "--winners", "3", "--seed", "1", "--no-window").code == 0
    (record,) = ladder.glob("images/cherry*.json")
    assert [cell["seed"] for cell in json.loads(record.read_text())["cells"]] == [1, 2, 3]
    assert command("cherry.py", "--redo", record).code == 0
    for arguments in (
        ["latent_space_exploration.py", "ladder", "0.7", "5", "--seed", "1", "--jams", "2", "--difference"],
        ["latent_space_exploration.py", "ladder", "0.7", "5", "--seed", "1", "--group", "1"],
        ["latent_space_exploration.py", "ladder", "0.7", "5", "--image", "a.png", "--seed", "1"],
        ["-m", "interpolate", "ladder", "a.png", "b.png"],
        ["-m", "interpolate", "ladder", "a.png", "b.png", "--coarse-from", "A"],
        ["-m", "interpolate", "ladder", "--walk", "2", "--seconds", "0.2", "--seed", "1"],
        ["-m", "reconstruct", "ladder", "a.png", "b.png", "--keep-groups", "0,1,3"],
        ["-m", "evaluate", "ladder", "--nll", "--samples", "3"],
        ["-m", "summary", "saved_weights/ladder.checkpoint"],
    ):
        before = set(ladder.glob("images/*"))
        assert command(*arguments).code == 0, arguments
        assert "summary" in arguments or set(ladder.glob("images/*")) > before
