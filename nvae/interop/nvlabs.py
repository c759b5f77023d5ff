"""Checkpoints of the original NVAE: its settings as our config, and its names of our network's tensors."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from nvae.config import ConfigError, config_from_dict
from nvae.config.errors import show
from nvae.interop.key_mapping import InteropError, KeyMap
from nvae.interop.nvae_keys import Layout, Place, build_key_map
from nvae.models.nvae.cells import InvertedResidualCell, ResidualCell
from nvae.models.nvae.network import NVAE
from nvae.schema import ModelConfig
from nvae.system.errors import Remedy

NAME = "the original NVAE (nvlabs)"
FAMILY = "nvae"

# Values of settings that older checkpoints lack.
_DEFAULTS = {"ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10, "num_x_bits": 8, "num_nf": 0}
_KINDS = {int: "a whole number", bool: "True or False", str: "text"}
_SCHEDULE = {
    "epochs": "epochs",
    "batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "learning_rate_min": "learning_rate_min",
    "weight_decay": "weight_decay",
    "weight_decay_norm": "regularization_constant",
    "warmup_epochs": "learning_rate_warmup_epochs",
    "kl_anneal_portion": "warmup_portion",
    "kl_const_portion": "warmup_delay_portion",
    "kl_const_coeff": "kl_const_coeff",
}
LSUN_CATEGORIES = {"church": "church_outdoor"}  # by the original's names


def matches(state: Mapping[str, Tensor]) -> bool:
    """Return whether the weights have the names of the original NVAE."""
    return any(name.startswith("enc_sampler.") for name in state)


def config_of(content: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> tuple[ModelConfig, list[str]]:
    """Return the config of the settings in a checkpoint, and warnings. Raises UserError."""
    args = content.get("args")
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    if not isinstance(args, dict):
        raise InteropError(f"{source}: the settings ('args') are missing; give the config.", Remedy.MODEL_CONFIG)
    return config_of_settings(args, source)


def config_of_settings(args: Mapping[str, Any], source: str) -> tuple[ModelConfig, list[str]]:
    """Return the config of the original's command-line settings, and warnings. Raises UserError."""

    def value(key: str, kind: type) -> Any:
        setting = args.get(key, _DEFAULTS.get(key))
        if type(setting) is not kind:
            raise InteropError(
                f"{source}: setting {key}: got {show(setting)}, expected {_KINDS[kind]}; give the config.",
                Remedy.MODEL_CONFIG,
            )
        return setting

    components, blocks = value("num_mixture_dec", int), value("num_preprocess_blocks", int)
    if value("num_postprocess_blocks", int) != blocks:
        raise InteropError(
            f"{source}: settings num_preprocess_blocks and num_postprocess_blocks: got {blocks} and "
            f"{args['num_postprocess_blocks']}, expected equal numbers."
        )
    adaptive, least = value("ada_groups", bool), value("min_groups_per_scale", int)
    images = _images(value("dataset", str), source)
    color = {"sampling_method": "gaussian"} if components == 1 else {"n_mix": components}
    data = {
        "style": "nvlabs",
        "likelihood_tails": "original",
        "channel_towers": {"encoder": value("num_channels_enc", int), "decoder": value("num_channels_dec", int)},
        "number_of_scales": value("num_latent_scales", int),
        "initial_splits_per_scale": value("num_groups_per_scale", int),
        "exponential_scaling": 2 if adaptive else 1,
        "min_splits": least if adaptive else 1,  # the original ignores the minimum without ada_groups
        "latent_size": value("num_latent_per_group", int),
        "pixel_bits": value("num_x_bits", int),
        "num_flows": value("num_nf", int),
        "num_blocks_prepost": blocks,
        "num_cells_per_block_prepost": {
            "encoder": value("num_preprocess_cells", int),
            "decoder": value("num_postprocess_cells", int),
        },
        "cells_per_split_enc": value("num_cell_per_cond_enc", int),
        "cells_per_input_dec": value("num_cell_per_cond_dec", int),
        "arch_instance": value("arch_instance", str),
        "residual_posterior": value("res_dist", bool),
        "squeeze_excitation": "sixteenth" if value("use_se", bool) else "none",
        **(color if images.get("image_channels", 3) == 3 else {}),
        **images,
    }
    where = f"{source}: settings"
    config, warnings = config_from_dict(data, where), []
    try:
        config = config_from_dict(data | {"training_parameters": _schedule(args)}, where)
    except ConfigError as error:  # a trained model is useful without its schedule
        warnings.append(f"the training schedule is left out: {error}")
    return config, warnings


def _schedule(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of training_parameters that the settings contain."""
    schedule = {ours: args[theirs] for theirs, ours in _SCHEDULE.items() if theirs in args}
    schedule |= {"learning_rate_decay": "nvlabs", "skip_high_losses": False}
    if args.get("weight_decay_norm_anneal") is True and "weight_decay_norm_init" in args:
        schedule["regularization_constant_initial"] = args["weight_decay_norm_init"]
    factors = [args.get(key, 1) for key in ("batch_size", "num_process_per_node", "num_proc_node")]
    if "batch_size" in schedule and all(isinstance(factor, int) for factor in factors):
        schedule["batch_size"] = math.prod(factors)  # in the original, the batch size of one GPU
    return schedule


def _images(dataset: str, source: str) -> dict[str, Any]:
    """Return the keys that the name of a data set determines."""
    if dataset in ("mnist", "omniglot"):
        return {
            "input_dimension": 28,
            "padding": 2,
            "image_channels": 1,
            "sampling_method": "bernoulli",
            "dataset": {"name": dataset, "path": f"dataset/{dataset}", "binarize": True},
        }
    named = re.fullmatch(r"\w{1,100}_(\d{1,4})", dataset, re.ASCII)
    side = {"cifar10": 32, "ffhq": 256}.get(dataset) or (int(named[1]) if named else None)
    if side is None:
        raise InteropError(
            f"{source}: setting dataset: got {show(dataset)}, whose image size is unknown; give the config.",
            Remedy.MODEL_CONFIG,
        )
    section = {"name": "cifar10" if dataset == "cifar10" else "folder", "path": f"dataset/{dataset}"}
    if dataset == "celeba_64":
        section = {"name": "celeba", "path": "dataset/celeba", "resampling": "bilinear"}
    scene = re.match(r"lsun_(bedroom|church|tower)", dataset)
    if scene:
        category = LSUN_CATEGORIES.get(scene[1], scene[1])
        crop = {"fit": "crop_anywhere", "resampling": "bilinear"}
        section = {"name": "lsun", "path": "dataset/lsun", "category": category, **crop}
    return {"input_dimension": side, "dataset": {**section, "horizontal_flip": True}}


def weights_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that our network has, in our shapes, under the original's names.

    Some files also hold copies of normalized weights, and plain VAEs hold an unused constant: both are left out. The
    constant at the top gets a batch dimension.
    """
    copies = {
        name for name in state if name.endswith(".weight_normalized") and name.removesuffix("_normalized") in state
    }
    weights = {name: tensor for name, tensor in state.items() if name not in copies}
    constant, is_plain = weights.pop("prior_ftr0", None), any(name.startswith("stem_decoder.") for name in weights)
    if constant is not None and not is_plain:
        weights["prior_ftr0"] = constant[None]
    return weights


def key_map(model: NVAE) -> KeyMap:
    """Return the original's name of every tensor of our network."""
    return build_key_map(model, _LAYOUT)


_MODULES: dict[str, Callable[[Place], str]] = {
    "stem": lambda place: "stem",
    "top": lambda place: "enc0.1",
    "head": lambda place: "image_conditional.1",
    "preprocess": lambda place: f"pre_process.{place.position}",
    "postprocess": lambda place: f"post_process.{place.position}",
    "tower": lambda place: f"enc_tower.{place.position}",
    "encoder_combiner": lambda place: f"enc_tower.{place.position}.conv",
    "cells": lambda place: f"dec_tower.{place.position}",
    "decoder_combiner": lambda place: f"dec_tower.{place.position}.conv",
    "plain_combiner": lambda place: "stem_decoder",
    "posterior_head": lambda place: f"enc_sampler.{place.group}",
    "prior_head": lambda place: f"dec_sampler.{place.group - 1}.1",
    "flow": lambda place: f"nf_cells.{place.position // 2}.cell{place.position % 2 + 1}",  # pairs over all groups
}
_FLOW = {"expand": "conv.convz.0", "depthwise": "conv.convz.2", "project": "mu.conv_0"}
_SHARED = {
    "se.squeeze": "se.se.0",
    "se.excite": "se.se.2",
    "skip.convolution": "skip.1",
    **{f"skip.convolutions.{i}": f"skip.conv_{i + 1}" for i in range(4)},
}


def _layer_names(module: nn.Module) -> dict[str, str]:
    if isinstance(module, ResidualCell):
        norm = "bn.bn" if module.activation == "bnelu" else "bn_act"
        return _SHARED | {
            f"{ours}{i}": f"_ops.{i - 1}.{theirs}"
            for i in (1, 2)
            for ours, theirs in (("norm", norm), ("conv", "conv_0"))
        }
    if isinstance(module, InvertedResidualCell):
        first = 1 if module.resample == "upsample" else 0  # the upsampling takes number 0
        inside = {
            "norm1": f"{first}.bn",
            "expand": f"{first + 1}.conv.0",
            "norm2": f"{first + 1}.conv.1",
            "depthwise": f"{first + 2}.conv.0",
            "norm3": f"{first + 2}.conv.1",
            "project": f"{first + 3}",
            "norm4": f"{first + 4}.bn",
        }
        return _SHARED | {ours: f"_ops.0.conv.{theirs}" for ours, theirs in inside.items()}
    return _FLOW


_LAYOUT = Layout(
    constant="prior_ftr0",
    modules=_MODULES,
    layer_names=_layer_names,
    weights={"parametrizations.weight.original0": "log_weight_norm", "parametrizations.weight.original1": "weight"},
)
