"""The seed project's checkpoints: its names of our model's tensors, and its architecture read off the shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nvae.config import ConfigError, available_configs, config_from_dict, load_config
from nvae.interop.key_mapping import SE_KEYS, InteropError, Names, tensors_of
from nvae.models.hierarchy import HierarchicalVAE
from nvae.models.likelihoods import build_likelihood
from nvae.models.nvae.cells import Cell, ResidualCell
from nvae.models.nvae.config import NVAEConfig, groups_per_scale

_WEIGHTS = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
    "parametrizations.weight.original": "weight",  # of a masked convolution
}
_RESIDUAL = {"norm1": 0, "conv1": 2, "norm2": 3, "conv2": 5}
_INVERTED = {"norm1": 1, "expand": 2, "norm2": 3, "depthwise": 5, "norm3": 6, "project": 8, "norm4": 9}
_FLOW = {"expand": 0, "depthwise": 2, "project": 5}


def key_map(model: HierarchicalVAE) -> Names:
    """Their name of every tensor of a model."""
    encoder, output = model.encoder, model.output
    names: Names = {"constant": "decoder_constant"}
    names |= _convolution("encoder.stem", "initial_transform", encoder.stem)
    names |= _convolution("encoder.top.1", "mixer.encoder_mixer.0.model.1", encoder.top[1])
    names |= _convolution("output.head", "to_distribution_conv.1", output.head)
    for i, cell in enumerate(encoder.preprocess):
        names |= _cell(f"encoder.preprocess.{i}", f"preprocess.model.{i + 1}.model", cell)
    for i, cell in enumerate(output.postprocess):
        names |= _cell(f"output.postprocess.{i}", f"postprocess.model.{i + 1}.model", cell)
    stacks = iter(enumerate(encoder.tower))
    for block, level in enumerate(reversed(model.levels)):
        for split in range(level.groups):
            i, stack = next(stacks)
            halves = sum(cell.resample is not None for cell in stack)  # 0 or 1, and then the first
            place = f"encoder_tower.model.enc_block_{block + 1}.model.split_{split + 1}.model"
            for c, cell in enumerate(stack):
                theirs = "down" if c < halves else f"cell_encoder{c - halves + 1}"
                names |= _cell(f"encoder.tower.{i}.{c}", f"{place}.{theirs}", cell)
    for g, group in enumerate(model.groups):
        ours = f"groups.{g}"
        doubles = sum(cell.resample is not None for cell in group.cells)
        for c, cell in enumerate(group.cells):
            theirs = "cell_decoder_upsample" if c < doubles else f"cell_decoder{c - doubles + 1}"
            names |= _cell(f"{ours}.cells.{c}", f"decoder_tower.blocks.{g - 1}.model.{theirs}", cell)
        if g > 0:
            names |= _convolution(f"{ours}.encoder_combiner", f"mixer.encoder_mixer.{g}.model", group.encoder_combiner)
            names |= _convolution(f"{ours}.prior_head", f"mixer.decoder_sampler.{g}.1", group.prior_head)
        names |= _convolution(f"{ours}.posterior_head", f"mixer.encoder_sampler.{g}", group.posterior_head)
        names |= _convolution(f"{ours}.decoder_combiner", f"mixer.decoder_mixer.{g}.model", group.decoder_combiner)
        for i, cell in enumerate(group.flow):
            for part, place in _FLOW.items():
                theirs = f"mixer.normal_flow_block.{g}.model.{i}.model.{place}"
                names |= _convolution(f"{ours}.flow.{i}.{part}", theirs, getattr(cell, part))
    return names


def _convolution(ours: str, theirs: str, convolution: nn.Module) -> Names:
    return tensors_of(ours, theirs, convolution, _WEIGHTS)


def _cell(ours: str, theirs: str, cell: Cell) -> Names:
    names: Names = {}
    parts, gate = (_RESIDUAL, 6) if isinstance(cell, ResidualCell) else (_INVERTED, 10)
    for part, place in parts.items():
        names |= tensors_of(f"{ours}.{part}", f"{theirs}.model.{place}", getattr(cell, part))
    if cell.se is not None:
        names |= tensors_of(f"{ours}.se", f"{theirs}.model.{gate}.model", cell.se, SE_KEYS)
    if cell.resample == "downsample":
        for i, convolution in enumerate(cell.skip.convolutions):
            place = f"{theirs}.skip.model.skip down.conv_{i + 1}"
            names |= tensors_of(f"{ours}.skip.convolutions.{i}", place, convolution)
    if cell.resample == "upsample":
        place = f"{theirs}.skip.model.skip up.model"
        names |= tensors_of(f"{ours}.skip.convolution", place, cell.skip.convolution)
    return names


def config_of(state: Mapping[str, Tensor], yaml_path: str, source: str) -> tuple[NVAEConfig, list[str]]:
    """The config of the model that weights belong to, and what a person should know about how it was found.

    yaml_path: where the file says that its YAML was: a config of ours with that name is taken if the shapes agree.
    Else everything is read off the shapes, but for what they do not show. Raises UserError.
    """
    name = re.split(r"[/\\]", yaml_path)[-1].rpartition(".")[0]
    found = _read_off(state, source)
    if (config := _of_that_name(name)) is not None and _shown(config) == _shown(found):
        return config, [f"taken for '{name}' of model_configs/, which its file names and whose shapes it has"]
    missing = f"its YAML file '{yaml_path}' is not here" if yaml_path else "it names no YAML file"
    notices = [f"{missing}: the architecture was read off the weights' shapes"]
    data = found.model_dump()
    if found.sampling_method == "logistic_mixture":
        method = "gaussian_mixture" if "gauss" in name else "logistic_mixture"
        data["sampling_method"] = method
        notices.append(
            f"shapes do not tell logistic_mixture and gaussian_mixture apart; taken for {method}: "
            "if that is wrong, give the YAML with --config"
        )
    if found.num_flows:
        notices.append("shapes do not show fixed_flows; taken for False: if that is wrong, give the YAML with --config")
    return config_from_dict(data, source), notices


def _of_that_name(name: str) -> NVAEConfig | None:
    try:
        return load_config(name) if name in available_configs() else None
    except ConfigError:
        return None


def _shown(config: NVAEConfig) -> list[Any]:
    """All of a config that shapes show."""
    keys = (
        *("channel_towers", "latent_size", "input_dimension", "image_channels", "num_flows", "num_blocks_prepost"),
        *("cells_per_split_enc", "cells_per_input_dec", "num_cells_per_block_prepost", "channel_multiplier"),
    )
    return [
        groups_per_scale(config),
        build_likelihood(config).num_parameters,
        *(getattr(config, key) for key in keys),
    ]


def _read_off(state: Mapping[str, Tensor], source: str) -> NVAEConfig:
    try:
        return _architecture(state, source)
    except (LookupError, ValueError, ZeroDivisionError) as error:
        raise InteropError(
            f"{source}: the architecture cannot be read off its weights ({error!r}); give the YAML with --config."
        ) from error


def _architecture(state: Mapping[str, Tensor], source: str) -> NVAEConfig:
    def numbers(pattern: str) -> list[int]:
        return sorted({int(match[1]) for name in state if (match := re.match(pattern, name))})

    channels, image_channels = state["initial_transform.weight_v"].shape[:2]
    top = state["decoder_constant"].shape[-1]
    parameters, decoder_channels = state["to_distribution_conv.1.weight_v"].shape[:2]
    latent_size = len(state["mixer.encoder_sampler.0.weight_v"]) // 2
    halving = sorted(name for name in state if name.endswith("skip down.conv_1.weight"))
    quarter, narrow = state[halving[0]].shape[:2] if halving else (1, 2)
    scales = numbers(r"encoder_tower\.model\.enc_block_(\d+)\.")
    splits = [len(numbers(rf"encoder_tower\.model\.enc_block_{scale}\.model\.split_(\d+)\.")) for scale in scales]
    blocks = sum(name.startswith("preprocess.") for name in halving)
    cells = len(numbers(r"preprocess\.model\.(\d+)\."))
    per_subpixel = parameters // image_channels
    data: dict[str, Any] = {
        "channel_towers": {"encoder": channels, "decoder": decoder_channels},
        "number_of_scales": len(scales),
        "latent_size": latent_size,
        "input_dimension": top * 2 ** (blocks + len(scales) - 1),
        "image_channels": image_channels,
        "num_flows": len(numbers(r"mixer\.normal_flow_block\.0\.model\.(\d+)\.")) // 2,
        "num_blocks_prepost": blocks,
        "num_cells_per_block_prepost": cells // blocks if blocks else 1,
        "channel_multiplier": 4 * quarter // narrow,
        "cells_per_split_enc": len(
            numbers(r"encoder_tower\.model\.enc_block_1\.model\.split_1\.model\.cell_encoder(\d+)\.")
        ),
        "cells_per_input_dec": len(numbers(r"decoder_tower\.blocks\.0\.model\.cell_decoder(\d+)\.")) or 1,
        **({"sampling_method": "logistic_mixture", "n_mix": per_subpixel // 3} if per_subpixel != 2 else {}),
    }
    for scaling in range(1, splits[0] + 1) if splits else []:
        for least in sorted({1, *splits}):
            groups = {"initial_splits_per_scale": splits[0], "exponential_scaling": scaling, "min_splits": least}
            config = config_from_dict(data | groups, f"{source}: the shapes in it")
            if groups_per_scale(config) == tuple(splits):
                return config
    raise InteropError(
        f"{source}: {splits} latent groups per scale are none that a config describes; give the YAML with --config."
    )
