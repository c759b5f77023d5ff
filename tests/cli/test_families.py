"""Every tool works on families without batch norms, whose state is a tuple: the Ladder VAE and the VDVAE."""

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

VDVAE_YAML = """
family: vdvae
input_dimension: 8
enc_blocks: auto
dec_blocks: auto
custom_width: auto
width: 4
latent_size: 2
sampling_method: coupled_logistic_mixture
dataset: {name: toy_faces, training_images: 24, validation_images: 8}
training_parameters: {batch_size: 8, epochs: 2, epochs_per_checkpoint: 1, evaluation_samples: 2, learning_rate: 0.02,
  ema_decay: 0.5}
"""
YAMLS = {"ladder": (LADDER_YAML, 3), "vdvae": (VDVAE_YAML, 5)}  # with the number of latent groups


@pytest.fixture(scope="module", params=YAMLS)
def trained_once(request, train_in_two_runs):
    return request.param, train_in_two_runs(request.param, YAMLS[request.param][0])


@pytest.fixture
def family(folder, trained_once):
    """The name of a run in the working directory, trained in two runs."""
    name, of_run = trained_once
    shutil.copytree(of_run, folder, dirs_exist_ok=True)
    return name


@pytest.mark.slow
def test_resumed_training_equals_one_run(family, command):
    two_runs = load(f"saved_weights/{family}.checkpoint")
    assert command("train.py", f"{family}.yaml", "--name", "whole").code == 0
    whole = load("saved_weights/whole.checkpoint")
    assert whole["training"]["progress"] == two_runs["training"]["progress"]
    assert all(torch.equal(two_runs["weights"][name], tensor) for name, tensor in whole["weights"].items())
    assert len(whole["metadata"]["kl_per_group"]) == YAMLS[family][1]


@pytest.mark.slow
def test_every_tool_works(family, folder, command, typed):
    Image.new("RGB", (8, 8), "red").save("a.png")
    Image.new("RGB", (8, 8), "blue").save("b.png")
    result = command("sample.py", family, "0.7", "5", "--seed", "1", "--out", "s.png")
    assert result.code == 0 and "batch norm" not in result.out  # without batch norms, nothing to recalibrate or say
    assert command("sample.py", family, "0.7", "5", "--seed", "1", "--out", "again.png").code == 0
    assert list(Image.open("s.png").getdata()) == list(Image.open("again.png").getdata())
    typed("1 2 3", "", "")
    assert command("cherry.py", family, "0.7", "5", "--winners", "3", "--seed", "1", "--no-window").code == 0
    (record,) = folder.glob("images/cherry*.json")
    assert [cell["seed"] for cell in json.loads(record.read_text())["cells"]] == [1, 2, 3]
    assert command("cherry.py", "--redo", record).code == 0
    for arguments in (
        ["latent_space_exploration.py", family, "0.7", "5", "--seed", "1", "--jams", "2", "--difference"],
        ["latent_space_exploration.py", family, "0.7", "5", "--seed", "1", "--group", "1"],
        ["latent_space_exploration.py", family, "0.7", "5", "--image", "a.png", "--seed", "1"],
        ["-m", "interpolate", family, "a.png", "b.png"],
        ["-m", "interpolate", family, "a.png", "b.png", "--coarse-from", "A"],
        ["-m", "interpolate", family, "--walk", "2", "--seconds", "0.2", "--seed", "1"],
        ["-m", "reconstruct", family, "a.png", "b.png", "--keep-groups", "0,1,3"],
        ["-m", "reconstruct", family, "a.png", "--keep-groups", "levels", "--temperature", "0.1"],
        ["-m", "evaluate", family, "--nll", "--samples", "3"],
        ["-m", "summary", f"saved_weights/{family}.checkpoint"],
    ):
        before = set(folder.glob("images/*"))
        assert command(*arguments).code == 0, arguments
        assert "summary" in arguments or set(folder.glob("images/*")) > before
