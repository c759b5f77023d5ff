"""Checkpoints of other programs: everything finds its place, or a sentence says what does not; nothing is run."""

from __future__ import annotations

import argparse
import math
import pickle
import re

import pytest
import torch

from nvae.checkpoint import load_model, save
from nvae.config import config_from_dict
from nvae.errors import UserError
from nvae.interop import mgp123, nvlabs
from nvae.interop.importer import import_checkpoint
from nvae.models.families import build_model
from nvae.models.hierarchy import FromNoise, FromPosterior

SETTINGS = {
    "dataset": "cifar10",
    "num_latent_scales": 2,
    "num_groups_per_scale": 2,
    "num_latent_per_group": 2,
    "ada_groups": True,
    "min_groups_per_scale": 1,
    "num_channels_enc": 4,
    "num_channels_dec": 6,
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 1,
    "num_cell_per_cond_enc": 1,
    "num_postprocess_blocks": 1,
    "num_postprocess_cells": 1,
    "num_cell_per_cond_dec": 1,
    "num_mixture_dec": 2,
    "use_se": True,
    "res_dist": False,
    "num_x_bits": 8,
    "num_nf": 0,
    "arch_instance": "res_mbconv",
}

LARGER = SETTINGS | {
    "num_groups_per_scale": 3,
    "num_preprocess_cells": 2,
    "num_postprocess_cells": 3,
    "num_cell_per_cond_dec": 2,
    "num_nf": 1,
}


def their_state(model, names):
    """Our model's weights as the other program would save them."""
    state = {theirs: model.state_dict()[ours].clone() for ours, theirs in names.items()}
    if "prior_ftr0" in state:
        state["prior_ftr0"] = state["prior_ftr0"][0]
    return state


def checkpoint_of(settings, seed=0):
    """A checkpoint like the original's, with random weights, and the model that it must become."""
    config, _ = nvlabs.config_of(settings, "settings")
    model = build_model(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1)
    state = their_state(model, nvlabs.key_map(model))
    return {"epoch": 3, "state_dict": state, "optimizer": {"state": {}}, "args": argparse.Namespace(**settings)}, model


@pytest.fixture
def file(tmp_path):
    """A function that saves something as a checkpoint file and gives its path."""

    def file(content, name="checkpoint.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return file


def assert_same(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    "changes",
    [
        LARGER,
        {"num_nf": 1, "use_se": False, "res_dist": True},
        {"ada_groups": False, "num_latent_scales": 3},
        {"dataset": "mnist", "num_preprocess_blocks": 2, "num_postprocess_blocks": 2},
        {"dataset": "celeba_64", "num_mixture_dec": 1, "num_x_bits": 5},
        {"num_latent_scales": 1, "num_groups_per_scale": 1},
        *({"arch_instance": name, "num_channels_enc": 8, "num_channels_dec": 8} for name in ("res_elu", "res_bnelu")),
        *(
            {"arch_instance": name, "num_channels_enc": 8, "num_channels_dec": 8}
            for name in ("mbconv_sep11", "mbconv_den")
        ),
        {"arch_instance": "mbconv_res"},
        {"arch_instance": "res55_mbconv"},
    ],
    ids=lambda changes: "larger" if changes == LARGER else str(changes),
)
def test_weights_in_the_originals_order_find_their_places(file, changes):
    content, expected = checkpoint_of(SETTINGS | changes)
    found = import_checkpoint(file(content))
    assert_same(found.model, expected)
    assert not found.model.training
    assert "original" in found.origin


def test_the_order_of_the_originals_cells_is_that_of_its_towers(file):
    """Names spelt out by hand for two scales: cells, combiner, ..., halving cell; in the decoder the other way."""
    _, model = checkpoint_of(LARGER)
    names = nvlabs.key_map(model)  # groups, finest first: 3, 1; top-down: 0 | 1 2 3
    assert names["encoder.tower.0.0.norm1.weight"] == "enc_tower.0._ops.0.bn_act.weight"
    assert names["groups.3.encoder_combiner.bias"] == "enc_tower.1.conv.bias"
    assert names["groups.1.encoder_combiner.bias"] == "enc_tower.5.conv.bias"
    assert names["encoder.tower.3.0.skip.convolutions.3.bias"] == "enc_tower.6.skip.conv_4.bias"  # halves
    assert names["encoder.tower.3.1.conv2.parametrizations.weight.original1"] == "enc_tower.7._ops.1.conv_0.weight"
    assert names["groups.0.decoder_combiner.parametrizations.weight.original0"] == "dec_tower.0.conv.log_weight_norm"
    assert names["groups.1.cells.0.skip.convolution.parametrizations.weight.original1"] == "dec_tower.1.skip.1.weight"
    assert names["groups.1.cells.0.norm1.weight"] == "dec_tower.1._ops.0.conv.1.bn.weight"  # after the doubling
    assert names["groups.1.cells.1.norm1.weight"] == "dec_tower.2._ops.0.conv.0.bn.weight"
    assert names["groups.1.decoder_combiner.bias"] == "dec_tower.4.conv.bias"
    assert names["groups.3.posterior_head.bias"] == "enc_sampler.3.bias"
    assert names["groups.3.prior_head.bias"] == "dec_sampler.2.1.bias"
    assert names["groups.2.flow.1.project.bias"] == "nf_cells.2.cell2.mu.conv_0.bias"
    assert names["output.postprocess.0.se.excite.weight"] == "post_process.0.se.se.2.weight"


def test_old_settings_and_stored_copies_are_understood(file):
    content, expected = checkpoint_of(SETTINGS | {"num_mixture_dec": 10, "ada_groups": False})
    for old in ("ada_groups", "min_groups_per_scale", "num_mixture_dec"):
        delattr(content["args"], old)
    state = content["state_dict"]
    copies = {f"{name}_normalized": t + 1 for name, t in state.items() if name.endswith("conv.0.weight")}
    assert copies
    content["state_dict"] = state | copies
    assert_same(import_checkpoint(file(content)).model, expected)


def test_the_schedule_of_the_settings_goes_on(file):
    settings = SETTINGS | {"epochs": 7, "weight_decay_norm": 0.1, "weight_decay_norm_anneal": True}
    content, _ = checkpoint_of(settings | {"weight_decay_norm_init": 10.0, "kl_anneal_portion": 0.4})
    schedule = import_checkpoint(file(content)).model.config.training_parameters
    assert (schedule.epochs, schedule.regularization_constant, schedule.warmup_portion) == (7, 0.1, 0.4)
    assert schedule.regularization_constant_initial == 10


def test_the_unused_constant_of_a_plain_vae_is_left_out(file):
    content, expected = checkpoint_of(SETTINGS | {"num_latent_scales": 1, "num_groups_per_scale": 1})
    assert expected.config.plain_vae
    content["state_dict"]["prior_ftr0"] = torch.rand(12, 16, 16)
    assert_same(import_checkpoint(file(content)).model, expected)


def test_a_missing_a_left_over_and_a_misshapen_tensor_are_named(file):
    content, _ = checkpoint_of(SETTINGS)
    name = next(n for n in content["state_dict"] if n.startswith("dec_sampler"))
    tensor = content["state_dict"].pop(name)
    with pytest.raises(UserError, match=rf"lacks '{re.escape(name)}'"):
        import_checkpoint(file(content))
    content["state_dict"][name] = tensor[:, :1] if tensor.ndim > 1 else tensor[:1]
    with pytest.raises(UserError, match=rf"'{re.escape(name)}' is of shape .*, but in the network of its settings"):
        import_checkpoint(file(content))
    content["state_dict"][name] = tensor
    content["state_dict"]["dec_sampler.99.1.weight"] = tensor
    with pytest.raises(UserError, match=r"holds 'dec_sampler\.99\.1\.weight'"):
        import_checkpoint(file(content))
    content["state_dict"]["dec_sampler.99.1.weight_normalized"] = content["state_dict"].pop("dec_sampler.99.1.weight")
    with pytest.raises(UserError, match=r"holds 'dec_sampler\.99\.1\.weight_normalized'"):
        import_checkpoint(file(content))  # a copy of nothing
    del content["state_dict"]["dec_sampler.99.1.weight_normalized"]
    content["state_dict"][name] = 3
    with pytest.raises(UserError, match="is not a tensor"):
        import_checkpoint(file(content))


class Trap:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_an_object_of_another_class_is_named_and_never_made(file, tmp_path):
    content, _ = checkpoint_of(SETTINGS)
    content["args"].extra = Trap(tmp_path / "sprung")
    with pytest.raises(UserError, match=r"holds an object of .*open"):
        import_checkpoint(file(content))
    old = tmp_path / "old.pt"
    old.write_bytes(pickle.dumps({"state_dict": Trap(tmp_path / "sprung")}))
    with pytest.raises(UserError):
        import_checkpoint(old)
    assert not (tmp_path / "sprung").exists()


def test_the_format_from_before_pytorch_1_6_is_read_too(tmp_path):
    content, expected = checkpoint_of(SETTINGS)
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same(import_checkpoint(tmp_path / "old.pt").model, expected)


@pytest.mark.parametrize(
    ("tensor", "pattern"),
    [
        (3, "is not a tensor"),
        (torch.tensor([1.0, math.nan]), "not finite"),
        (torch.zeros(2, dtype=torch.complex64), "plain numbers"),
        (torch.eye(2).to_sparse(), "plain numbers"),
    ],
    ids=["number", "nan", "complex", "sparse"],
)
@pytest.mark.parametrize("name", ["prior_ftr0", "decoder_constant", "initial_transform.weight_v", "enc_sampler.0.bias"])
def test_weights_that_are_no_plain_finite_tensors_are_refused(file, name, tensor, pattern):
    content, _ = checkpoint_of(SETTINGS)
    content["state_dict"][name] = tensor
    with pytest.raises(UserError, match=rf"'{re.escape(name)}' .*{pattern}"):
        import_checkpoint(file(content))


def test_whole_numbers_are_no_weights(file):
    content, _ = checkpoint_of(SETTINGS)
    content["state_dict"]["stem.bias"] = content["state_dict"]["stem.bias"].to(torch.int8)
    with pytest.raises(UserError, match=r"'stem.bias' is of torch.int8"):
        import_checkpoint(file(content))


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"num_groups_per_scale": 10**9}, "initial_splits_per_scale: got 1000000000"),
        ({"num_latent_scales": 10**6}, "number_of_scales: got 1000000"),
        ({"num_channels_enc": 10**9}, "channel_towers.encoder: got 1000000000"),
        ({"num_channels_dec": 9999}, r"'.*' is of shape .*, but in the network"),  # far more memory than there is
        ({"num_groups_per_scale": 500}, "holds 3 latent groups, but its settings, or --config, describe 750"),
        ({"num_nf": 10**9}, "num_flows: got 1000000000"),
        ({"dataset": "celeba_" + 5000 * "6"}, "image size is known"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_are_a_trap_cost_nothing(file, settings, pattern):
    content, _ = checkpoint_of(SETTINGS)
    vars(content["args"]).update(settings)
    with pytest.raises(UserError, match=pattern):
        import_checkpoint(file(content))


def test_a_schedule_that_makes_no_sense_is_left_out_and_said(file):
    content, expected = checkpoint_of(SETTINGS)
    content["args"].learning_rate = 1e-9  # below the least one
    found = import_checkpoint(file(content))
    assert_same(found.model, expected)
    assert "schedule is left out" in found.notices[0]


def test_the_batch_is_that_of_all_gpus(file):
    content, _ = checkpoint_of(SETTINGS | {"batch_size": 24, "num_process_per_node": 8, "num_proc_node": 3})
    assert import_checkpoint(file(content)).model.config.training_parameters.batch_size == 576


def test_an_old_file_that_was_cut_off_is_a_sentence(tmp_path):
    torch.save(checkpoint_of(SETTINGS)[0], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pt").read_bytes()
    for kept in [*range(0, 200, 7), *range(1000, len(whole), len(whole) // 23)]:
        (tmp_path / "old.pt").write_bytes(whole[:kept])
        with pytest.raises(UserError):
            import_checkpoint(tmp_path / "old.pt")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ({}, "holds no 'state_dict'"),
        ({"state_dict": {3: torch.zeros(2)}}, "holds no 'state_dict' of named weights"),
        ({"state_dict": {"mixer.encoder_sampler.0.weight_v": torch.zeros(())}}, "cannot be read off"),
        ([1, 2], "holds no checkpoint"),
        ({"state_dict": {"layer.weight": torch.zeros(2)}}, "another kind of network"),
        ({"state_dict": {"enc_sampler.0.weight": torch.zeros(2)}}, "holds no settings"),
        ({"state_dict": {"decoder_constant": torch.zeros(1, 2, 4, 4)}}, "another kind of network"),
        ({"state_dict": {"mixer.encoder_sampler.0.weight_v": torch.zeros(4, 2, 3, 3)}}, "cannot be read off.*--config"),
    ],
    ids=str,
)
def test_files_that_hold_something_else_are_refused(file, content, pattern):
    with pytest.raises(UserError, match=pattern):
        import_checkpoint(file(content))


def test_files_that_are_damaged_or_absent_are_refused(file, tmp_path):
    path = file(checkpoint_of(SETTINGS)[0])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="damaged"):
        import_checkpoint(path)
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(UserError, match="damaged or is not a checkpoint"):
        import_checkpoint(tmp_path / "text.pt")
    with pytest.raises(UserError, match="there is no file"):
        import_checkpoint(tmp_path / "absent.pt")


def test_a_config_that_is_given_is_what_counts(file, make_config):
    content, expected = checkpoint_of(SETTINGS)
    content["args"].num_latent_per_group = 17  # wrong, and not looked at
    assert_same(import_checkpoint(file(content), expected.config).model, expected)
    with pytest.raises(UserError):
        import_checkpoint(file(content), make_config())


# ---------------------------------------------------------------------------------------------- the seed project


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling_method": "logistic_mixture"},
        {"num_flows": 1},
        {
            "number_of_scales": 3,
            "initial_splits_per_scale": 5,
            "exponential_scaling": 2,
            "min_splits": 2,
            "input_dimension": 16,
        },
        {"channel_towers": {"encoder": 4, "decoder": 6}, "channel_multiplier": 3, "image_channels": 1},
        {"num_cells_per_block_prepost": 3, "num_blocks_prepost": 2, "cells_per_split_enc": 2, "cells_per_input_dec": 3},
        {"number_of_scales": 1, "initial_splits_per_scale": 1, "num_blocks_prepost": 0},
    ],
    ids=str,
)
def test_the_seeds_architecture_is_read_off_the_shapes(file, make_model, changes):
    expected = make_model(**changes)
    content = {"state_dict": their_state(expected, mgp123.key_map(expected)), "model_arch": "elsewhere/x.yaml"}
    found = import_checkpoint(file(content))
    assert_same(found.model, expected)
    assert found.model.noise_shapes == expected.noise_shapes
    assert "shapes" in found.notices[0]
    assert any("--config" in notice for notice in found.notices) == bool(
        {"sampling_method", "num_flows"} & changes.keys()
    )


def test_a_config_without_gates_has_no_gates_to_fill(file, make_model, make_config):
    model = make_model()
    content = {"state_dict": their_state(model, mgp123.key_map(model))}
    with pytest.raises(UserError, match=r"holds '.*' and \d+ more tensors, which"):
        import_checkpoint(file(content), make_config(squeeze_excitation="none"))
    assert "names no YAML file" in import_checkpoint(file(content)).notices[0]


def test_a_yaml_of_ours_that_the_file_names_and_that_fits_is_taken(file):
    config = config_from_dict(
        {
            "channel_towers": 4,
            "number_of_scales": 3,
            "initial_splits_per_scale": 1,
            "latent_size": 2,
            "sampling_method": "gaussian_mixture",
            "input_dimension": 64,
        },
        "test",
    )
    model = build_model(config)
    content = {"state_dict": their_state(model, mgp123.key_map(model)), "model_arch": "configs/gaussian_mixture.yaml"}
    found = import_checkpoint(file(content))  # the name fits, the width does not
    assert found.model.config.channel_towers.encoder == 4
    assert found.model.config.sampling_method == "gaussian_mixture"  # as the name hints


# -------------------------------------------------------------------------------------------------- recordings


@torch.no_grad()
def test_the_originals_recorded_checkpoint_becomes_the_recorded_model(reference, tmp_path):
    recording = torch.load(reference / "nvlabs_bernoulli.pt", weights_only=True)
    save(import_checkpoint(reference / "nvlabs_bernoulli_checkpoint.pt").model, tmp_path / "it.model")
    model, logits = load_model(tmp_path / "it.model"), []
    model.output.register_forward_hook(lambda module, args, output: logits.append(output))
    images, expected = recording["x"], recording["eval"]
    result = model.top_down(FromPosterior(model.encoder(images), noise=expected["noise"]), len(images))
    torch.testing.assert_close(result.kl, expected["kl_per_group"], rtol=1e-4, atol=1e-4)
    model.top_down(FromNoise(recording["sample"]["noise"], recording["sample"]["temperature"]), len(images))
    for found, truth in zip(logits, (expected["logits"], recording["sample"]["logits"]), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)
    assert model.top_down(FromNoise(model.draw_noise(2), 0.7), 2).px_z.mean().shape == (2, 1, 28, 28)


@torch.no_grad()
def test_the_seeds_recorded_checkpoint_becomes_the_recorded_model(reference, tmp_path):
    recording = torch.load(reference / "mgp123_logistic_mixture.pt", weights_only=True)
    found = import_checkpoint(reference / "mgp123_logistic_mixture.checkpoint")
    assert "shapes" in found.notices[0]
    save(found.model, tmp_path / "it.model")
    model, images, expected = load_model(tmp_path / "it.model"), recording["x"], recording["eval"]
    result = model.top_down(FromPosterior(model.bottom_up(images), noise=expected["noise"]), len(images))
    torch.testing.assert_close(result.kl, expected["kl_per_group"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.px_z.mean(), expected["mean"], rtol=1e-4, atol=1e-4)
    log_prob = result.px_z.log_prob(images)
    torch.testing.assert_close(log_prob, expected["log_p_subpixel"], rtol=1e-4, atol=1e-3)
