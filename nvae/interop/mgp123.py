"""Checkpoints of the seed project: its names of our network's tensors, and its architecture derived from shapes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nvae.config import available_configs, config_from_dict, load_config
from nvae.interop.key_mapping import InteropError, KeyMap, count_numbers
from nvae.interop.nvae_keys import Layout, Place, build_key_map
from nvae.models.nvae.cells import InvertedResidualCell, ResidualCell
from nvae.models.nvae.config import NVAEConfig
from nvae.models.nvae.network import NVAE
from nvae.system.errors import Remedy

NAME = "the seed project (mgp123)"
FAMILY = "nvae"


def matches(state: Mapping[str, Tensor]) -> bool:
    """Return whether the weights have the names of the seed project."""
    return any(name.startswith("mixer.encoder_sampler.") for name in state)


def weights_of(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights unchanged: the seed project has our shapes."""
    return state


def key_map(model: NVAE) -> KeyMap:
    """Return the seed's name of every tensor of our network."""
    return build_key_map(model, _LAYOUT)


def _tower(place: Place) -> str:
    cell = f"cell_encoder{place.number}" if place.number else "down"
    return f"encoder_tower.model.enc_block_{place.scale + 1}.model.split_{place.split + 1}.model.{cell}"


def _cells(place: Place) -> str:
    cell = f"cell_decoder{place.number}" if place.number else "cell_decoder_upsample"
    return f"decoder_tower.blocks.{place.group - 1}.model.{cell}"


_MODULES: dict[str, Callable[[Place], str]] = {
    "stem": lambda place: "initial_transform",
    "top": lambda place: "mixer.encoder_mixer.0.model.1",
    "head": lambda place: "to_distribution_conv.1",
    "preprocess": lambda place: f"preprocess.model.{place.position + 1}.model",
    "postprocess": lambda place: f"postprocess.model.{place.position + 1}.model",
    "tower": _tower,
    "encoder_combiner": lambda place: f"mixer.encoder_mixer.{place.group}.model",
    "cells": _cells,
    "decoder_combiner": lambda place: f"mixer.decoder_mixer.{place.group}.model",
    "plain_combiner": lambda place: f"mixer.decoder_mixer.{place.group}.model",
    "posterior_head": lambda place: f"mixer.encoder_sampler.{place.group}",
    "prior_head": lambda place: f"mixer.decoder_sampler.{place.group}.1",
    "flow": lambda place: f"mixer.normal_flow_block.{place.group}.model.{place.number}",
}
_RESIDUAL = {"norm1": 0, "conv1": 2, "norm2": 3, "conv2": 5}, 6
_INVERTED = {"norm1": 1, "expand": 2, "norm2": 3, "depthwise": 5, "norm3": 6, "project": 8, "norm4": 9}, 10
_FLOW = {"expand": "model.0", "depthwise": "model.2", "project": "model.5"}
_SKIP = {
    "skip.convolution": "skip.model.skip up.model",
    **{f"skip.convolutions.{i}": f"skip.model.skip down.conv_{i + 1}" for i in range(4)},
}


def _layer_names(module: nn.Module) -> dict[str, str]:
    if not isinstance(module, ResidualCell | InvertedResidualCell):
        return _FLOW
    layers, se = _RESIDUAL if isinstance(module, ResidualCell) else _INVERTED
    return {
        **{ours: f"model.{number}" for ours, number in layers.items()},
        "se.squeeze": f"model.{se}.model.0",
        "se.excite": f"model.{se}.model.2",
        **_SKIP,
    }


_LAYOUT = Layout(
    constant="decoder_constant",
    modules=_MODULES,
    layer_names=_layer_names,
    weights={
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
        "parametrizations.weight.original": "weight",  # of a masked convolution
    },
)


# ------------------------------------------------------------------------------------- the config of a checkpoint


def config_of(content: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> tuple[NVAEConfig, list[str]]:
    """Return the config of a checkpoint, and warnings about assumptions. Raises UserError.

    A checkpoint holds the path of its YAML file. A config in model_configs/ with the name of that file is used if its
    shapes agree. Otherwise the architecture is derived from the shapes of the weights.
    """
    path = content.get("model_arch")
    path = path if isinstance(path, str) else ""
    name = re.split(r"[/\\]", path)[-1].rpartition(".")[0]
    if (named := _config_with(name, state)) is not None:
        return named, [f"config: taken from model_configs/{name}.yaml, which the file names and whose shapes agree"]
    try:
        config = _architecture(state, source, "gaussian_mixture" if "gauss" in name else "logistic_mixture")
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        raise InteropError(
            f"{source}: the architecture cannot be derived from the shapes of the weights "
            f"({type(error).__name__}: {str(error)[:200]!r}); give the config.",
            Remedy.MODEL_CONFIG,
        ) from error
    missing = (
        f"no config in model_configs/ is {path[:200]!r} with these shapes" if path else "the file names no YAML file"
    )
    warnings = [f"config: derived from the shapes of the weights, because {missing}"]
    if config.sampling_method != "gaussian":
        warnings.append(
            f"sampling_method: assumed {config.sampling_method}; logistic_mixture and gaussian_mixture have the same "
            "shapes. If this is wrong, give the config"
        )
    if config.num_flows:
        warnings.append("fixed_flows: assumed False; shapes do not show it. If this is wrong, give the config")
    return config, warnings


def _config_with(name: str, state: Mapping[str, Tensor]) -> NVAEConfig | None:
    """Return the config of this name in model_configs/, if its network has these weights."""
    config = load_config(name) if name in available_configs() else None
    if not isinstance(config, NVAEConfig):
        return None
    with torch.device("meta"):
        model = NVAE(config)
    ours = model.state_dict()
    shapes = {theirs: ours[name].shape for name, theirs in key_map(model).items()}
    return config if shapes == {name: tensor.shape for name, tensor in state.items()} else None


def _architecture(state: Mapping[str, Tensor], source: str, mixture: str) -> NVAEConfig:
    """Return a config with these shapes. mixture: the likelihood, unless the shapes show a Gaussian one."""
    channels, image_channels = state["initial_transform.weight_v"].shape[:2]
    parameters, decoder_channels = state["to_distribution_conv.1.weight_v"].shape[:2]
    downsampling = sorted(name for name in state if name.endswith("skip down.conv_1.weight"))
    quarter, skip_channels = state[downsampling[0]].shape[:2] if downsampling else (1, 2)
    blocks = sum(name.startswith("preprocess.") for name in downsampling)
    cells = count_numbers(state, r"preprocess\.model\.(\d+)\.")
    splits_of: dict[int, set[str]] = defaultdict(set)
    for name in state:
        if match := re.match(r"encoder_tower\.model\.enc_block_(\d{1,4})\.model\.split_(\d+)\.", name):
            splits_of[int(match[1])].add(match[2])
    splits = tuple(len(splits_of[scale]) for scale in sorted(splits_of))  # finest scale first
    per_subpixel = parameters // image_channels
    data: dict[str, Any] = {
        "channel_towers": {"encoder": channels, "decoder": decoder_channels},
        "number_of_scales": len(splits),
        "groups_per_scale": splits[::-1],
        "latent_size": len(state["mixer.encoder_sampler.0.weight_v"]) // 2,
        "input_dimension": state["decoder_constant"].shape[-1] * 2 ** (blocks + len(splits) - 1),
        "image_channels": image_channels,
        "num_flows": count_numbers(state, r"mixer\.normal_flow_block\.0\.model\.(\d+)\.") // 2,
        "num_blocks_prepost": blocks,
        "num_cells_per_block_prepost": cells // blocks if blocks else 1,
        "channel_multiplier": 4 * quarter // skip_channels,
        "cells_per_split_enc": count_numbers(
            state, r"encoder_tower\.model\.enc_block_1\.model\.split_1\.model\.cell_encoder(\d+)\."
        ),
        "cells_per_input_dec": count_numbers(state, r"decoder_tower\.blocks\.0\.model\.cell_decoder(\d+)\.") or 1,
        **({"sampling_method": mixture, "n_mix": per_subpixel // 3} if per_subpixel != 2 else {}),
    }
    config = config_from_dict(data, f"{source}: shapes of the weights")
    assert isinstance(config, NVAEConfig)  # the family of data without this key
    return config
