"""The original NVAE's checkpoints: its settings as our config, its names of our model's tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from nvae.config import ConfigError, config_from_dict
from nvae.interop.key_mapping import SE_KEYS, InteropError, Names, tensors_of
from nvae.models.hierarchy import HierarchicalVAE
from nvae.models.nvae.cells import Cell, InvertedResidualCell, ResidualCell
from nvae.models.nvae.config import NVAEConfig

_WEIGHT_NORM = {"parametrizations.weight.original0": "log_weight_norm", "parametrizations.weight.original1": "weight"}
_OLD = {"ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10, "num_x_bits": 8, "num_nf": 0}
_KINDS = {int: "a whole number", bool: "True or False", str: "a text"}
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
}


def config_of(args: Mapping[str, Any], source: str) -> tuple[NVAEConfig, list[str]]:
    """The config of a model that the original was told to build with these settings, and notices. Raises UserError."""

    def value(key: str, kind: type) -> Any:
        found = args.get(key, _OLD.get(key))
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            what = f"is {found!r}, which is not {_KINDS[kind]}" if key in args else "is missing"
            raise InteropError(f"{source}: the setting {key} {what}; give the architecture with --config.")
        return found

    components = value("num_mixture_dec", int)
    blocks = value("num_preprocess_blocks", int)
    if value("num_postprocess_blocks", int) != blocks:
        raise InteropError(f"{source}: num_preprocess_blocks and num_postprocess_blocks differ; no image comes out.")
    images = _images(value("dataset", str), source)
    color = {"sampling_method": "gaussian"} if components == 1 else {"n_mix": components}
    data = {
        "style": "nvlabs",
        "channel_towers": {"encoder": value("num_channels_enc", int), "decoder": value("num_channels_dec", int)},
        "number_of_scales": value("num_latent_scales", int),
        "initial_splits_per_scale": value("num_groups_per_scale", int),
        "exponential_scaling": 2 if value("ada_groups", bool) else 1,
        "min_splits": value("min_groups_per_scale", int),
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
    where = f"{source}: the settings in it"
    config = config_from_dict(data, where)
    try:
        return config_from_dict(data | {"training_parameters": _schedule(args)}, where), []
    except ConfigError as error:  # no reason to refuse a trained model
        return config, [f"its training schedule is left out: {error}"]


def _schedule(args: Mapping[str, Any]) -> dict[str, Any]:
    """What of their training schedule the settings tell."""
    schedule = {ours: args[theirs] for theirs, ours in _SCHEDULE.items() if isinstance(args.get(theirs), int | float)}
    if args.get("weight_decay_norm_anneal") and isinstance(args.get("weight_decay_norm_init"), int | float):
        schedule["regularization_constant_initial"] = args["weight_decay_norm_init"]
    processes = [args.get(key) for key in ("num_process_per_node", "num_proc_node")]
    if "batch_size" in schedule:  # theirs is that of one GPU
        schedule["batch_size"] *= math.prod(n for n in processes if isinstance(n, int))
    return schedule


def _images(dataset: str, source: str) -> dict[str, Any]:
    """What the name of a data set says about its images."""
    if dataset in ("mnist", "omniglot"):
        return {
            "input_dimension": 28,
            "padding": 2,
            "image_channels": 1,
            "sampling_method": "bernoulli",
            "dataset": {
                "name": "mnist" if dataset == "mnist" else "folder",
                "path": f"dataset/{dataset}",
                "binarize": True,
            },
        }
    named = re.fullmatch(r"\w+_(\d{1,4})", dataset, re.ASCII)
    side = {"cifar10": 32, "ffhq": 256}.get(dataset) or (int(named[1]) if named else None)
    if side is None:
        raise InteropError(f"{source}: its data set '{dataset}' is none whose image size is known; give a --config.")
    flip = not dataset.startswith("imagenet")
    return {
        "input_dimension": side,
        "dataset": {
            "name": "cifar10" if dataset == "cifar10" else "folder",
            "path": f"dataset/{dataset}",
            "horizontal_flip": flip,
        },
    }


def weights_of(state: Mapping[str, Any], config: NVAEConfig) -> dict[str, Any]:
    """Their state dictionary as our model has it.

    Without the copies of normalized weights that some of their files carry too, and without the constant that their
    plain VAE has and never uses; the constant at the top gets a dimension for the images of a batch.
    """
    copies = {
        name for name in state if name.endswith(".weight_normalized") and name.removesuffix("_normalized") in state
    }
    weights = {name: tensor for name, tensor in state.items() if name not in copies}
    constant = weights.pop("prior_ftr0", None)
    if config.plain_vae:
        return weights
    return weights if constant is None else weights | {"prior_ftr0": constant[None]}


def key_map(model: HierarchicalVAE) -> Names:
    """Their name of every tensor of a model."""
    encoder, output, groups = model.encoder, model.output, model.groups
    plain = model.config.plain_vae
    names: Names = {} if plain else {"constant": "prior_ftr0"}
    names |= _convolution("encoder.stem", "stem", encoder.stem)
    names |= _convolution("encoder.top.1", "enc0.1", encoder.top[1])
    names |= _convolution("output.head", "image_conditional.1", output.head)
    for i, cell in enumerate(encoder.preprocess):
        names |= _cell(f"encoder.preprocess.{i}", f"pre_process.{i}", cell)
    for i, cell in enumerate(output.postprocess):
        names |= _cell(f"output.postprocess.{i}", f"post_process.{i}", cell)
    # One flat list of cells and combiners, bottom to top; the deepest group has no combiner.
    position = 0
    for i, stack in enumerate(encoder.tower):
        for c, cell in enumerate(stack):
            names |= _cell(f"encoder.tower.{i}.{c}", f"enc_tower.{position}", cell)
            position += 1
        g = len(groups) - 1 - i
        if g > 0:
            combiner = groups[g].encoder_combiner
            names |= _convolution(f"groups.{g}.encoder_combiner", f"enc_tower.{position}.conv", combiner)
            position += 1
    # And one top to bottom.
    position = 0
    for g, group in enumerate(groups):
        for c, cell in enumerate(group.cells):
            names |= _cell(f"groups.{g}.cells.{c}", f"dec_tower.{position}", cell)
            position += 1
        theirs = "stem_decoder" if plain else f"dec_tower.{position}.conv"
        names |= _convolution(f"groups.{g}.decoder_combiner", theirs, group.decoder_combiner)
        position += 1
        names |= _convolution(f"groups.{g}.posterior_head", f"enc_sampler.{g}", group.posterior_head)
        if g > 0:
            names |= _convolution(f"groups.{g}.prior_head", f"dec_sampler.{g - 1}.1", group.prior_head)
        for i, cell in enumerate(group.flow):
            pair = g * (len(group.flow) // 2) + i // 2
            theirs = f"nf_cells.{pair}.cell{i % 2 + 1}"
            for ours, part in (("expand", "conv.convz.0"), ("depthwise", "conv.convz.2"), ("project", "mu.conv_0")):
                names |= _convolution(f"groups.{g}.flow.{i}.{ours}", f"{theirs}.{part}", getattr(cell, ours))
    return names


def _convolution(ours: str, theirs: str, convolution: nn.Module) -> Names:
    return tensors_of(ours, theirs, convolution, _WEIGHT_NORM)


def _cell(ours: str, theirs: str, cell: Cell) -> Names:
    names: Names = {}
    if cell.se is not None:
        names |= tensors_of(f"{ours}.se", f"{theirs}.se.se", cell.se, SE_KEYS)
    if cell.resample == "downsample":
        for i, convolution in enumerate(cell.skip.convolutions):
            names |= _convolution(f"{ours}.skip.convolutions.{i}", f"{theirs}.skip.conv_{i + 1}", convolution)
    if cell.resample == "upsample":
        names |= _convolution(f"{ours}.skip.convolution", f"{theirs}.skip.1", cell.skip.convolution)
    return names | (_residual(ours, theirs, cell) if isinstance(cell, ResidualCell) else _inverted(ours, theirs, cell))


def _residual(ours: str, theirs: str, cell: ResidualCell) -> Names:
    norm = {"bnswish": "bn_act", "bnelu": "bn", "elu": ""}[cell.activation]
    names: Names = {}
    for i in (1, 2):
        names |= tensors_of(f"{ours}.norm{i}", f"{theirs}._ops.{i - 1}.{norm}", getattr(cell, f"norm{i}"))
        names |= _convolution(f"{ours}.conv{i}", f"{theirs}._ops.{i - 1}.conv_0", getattr(cell, f"conv{i}"))
    return names


def _inverted(ours: str, theirs: str, cell: InvertedResidualCell) -> Names:
    first = 1 if cell.resample == "upsample" else 0  # after the doubling
    parts = {
        "norm1": f"{first}.bn",
        "expand": f"{first + 1}.conv.0",
        "norm2": f"{first + 1}.conv.1",
        "depthwise": f"{first + 2}.conv.0",
        "norm3": f"{first + 2}.conv.1",
        "project": f"{first + 3}",
        "norm4": f"{first + 4}.bn",
    }
    names: Names = {}
    for part, place in parts.items():
        names |= tensors_of(f"{ours}.{part}", f"{theirs}._ops.0.conv.{place}", getattr(cell, part))
    return names
