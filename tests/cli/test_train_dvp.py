"""Training and evaluating a DVP-VAE from the command line: calibration, EMA, resuming, the options of its bound."""

import json
import shutil

import pytest
import torch

from nvae.checkpoint import load, load_model

DVP_YAML = """
family: dvp
input_dimension: 8
image_channels: 1
sampling_method: bernoulli
latents_per_scale: [1, 1]
channels: 4
encoder_blocks_per_scale: 1
context_size: 3
diffusion_steps: 3
unet_blocks: 1
unet_dropout: 0.1
dataset:
  {name: toy_faces, training_images: 24, validation_images: 8, binarize: true, encoder_input: gray,
  horizontal_flip: true}
training_parameters:
  {batch_size: 8, epochs: 2, epochs_per_checkpoint: 1, evaluation_samples: 2, ema_decay: 0.9,
  early_stopping_patience: 5, loss_scale: bits_per_dimension, gradient_accumulation: 2}
"""


@pytest.fixture(scope="module")
def dvp_once(train_in_two_runs):
    return train_in_two_runs("dvp", DVP_YAML)


@pytest.fixture
def dvp(folder, dvp_once):
    """A working directory with a DVP-VAE, trained in two runs."""
    return shutil.copytree(dvp_once, folder, dirs_exist_ok=True)


@pytest.mark.slow
def test_dvp_resumed_training_equals_one_run(dvp, command):
    two_runs = load("saved_weights/dvp.checkpoint")
    assert command("train.py", "dvp.yaml", "--name", "whole").code == 0
    whole = load("saved_weights/whole.checkpoint")
    assert whole["training"]["progress"] == two_runs["training"]["progress"]
    for ours, theirs in (
        (whole["weights"], two_runs["weights"]),
        (whole["training"]["model"], two_runs["training"]["model"]),
        (whole["training"]["best"]["weights"], two_runs["training"]["best"]["weights"]),
    ):
        assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


@pytest.mark.slow
def test_dvp_training_calibrates_the_context_of_both_sets_of_weights(dvp):
    content = load("saved_weights/dvp.checkpoint")
    scale = content["weights"]["groups.0.context.scale"]
    assert torch.equal(scale, content["training"]["model"]["groups.0.context.scale"])
    assert scale.max() > 1  # the first coefficient is 8 times the mean of an image
    assert torch.equal(scale, scale.floor()) and scale.min() >= 1
    model = load_model("saved_weights/final_result_dvp.model")
    assert torch.equal(model.groups[0].context.scale, scale)


def report_of(dvp, name):
    (file,) = dvp.glob(f"images/evaluation_dvp_toy_faces_validation_8images_{name}.json")
    return json.loads(file.read_text())


@pytest.mark.slow
def test_evaluate_published_protocol_is_no_bound(dvp, command):
    result = command("-m", "evaluate", "dvp", "--nll", "--samples", "20")
    assert result.code == 0 and "NOT A BOUND" not in result.out
    bound = report_of(dvp, "20samples")
    assert bound["is_bound"] and bound["estimator"] == "importance_weighted"
    for samples in ("1", "20"):
        result = command("-m", "evaluate", "dvp", "--nll", "--samples", samples, "--protocol", "dvp")
        assert result.code == 0 and "NOT A BOUND" in result.out
    published = report_of(dvp, "20samples_protocoldvp")
    assert not published["is_bound"]
    assert published["log_likelihood"]["mean"] > bound["log_likelihood"]["mean"]


@pytest.mark.slow
def test_evaluate_more_diffusion_steps_and_contexts_reduce_the_error(dvp, command):
    command("-m", "evaluate", "dvp", "--nll", "--samples", "5")
    options = ("--diffusion-steps", "50", "--context-samples", "3")
    assert command("-m", "evaluate", "dvp", "--nll", "--samples", "5", *options).code == 0
    precise = report_of(dvp, "5samples_context-samples3_diffusion-steps50")
    assert (precise["context_samples"], precise["diffusion_steps"]) == (3, 50)
    assert precise["log_likelihood"]["mean"] != report_of(dvp, "5samples")["log_likelihood"]["mean"]


@pytest.mark.parametrize(
    "options",
    [
        ["--protocol", "dvp"],
        ["--context-samples", "2"],
        ["--nll", "--protocol", "dvp", "--context-samples", "2"],
        ["--nll", "--protocol", "paper"],
        ["--diffusion-steps", "0"],
    ],
    ids=" ".join,
)
def test_evaluate_refuses_combinations(tools, command, options):
    command("-m", "evaluate", "little", *options).assert_refused(options[-2])


@pytest.mark.parametrize("options", [["--nll", "--context-samples", "2"], ["--diffusion-steps", "5"]], ids=" ".join)
def test_evaluate_options_of_a_diffusion_prior_need_one(tools, command, options):
    model = str(next(tools.glob("saved_weights/*.model")))
    command("-m", "evaluate", model, *options).assert_refused(options[-2])
