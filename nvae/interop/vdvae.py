"""Checkpoints of the original VDVAE: its names of our network's tensors, and its settings from a log or from shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nvae.config import ConfigError, config_from_dict, load_config
from nvae.interop.key_mapping import InteropError, KeyMap, count_numbers
from nvae.models.vdvae.config import VDVAEConfig, blocks_of
from nvae.models.vdvae.network import VDVAE
from nvae.schema import ModelConfig
from nvae.system.errors import Remedy

NAME = "the original VDVAE"
FAMILY = "vdvae"
PUBLISHED = {  # by the original's name of the data set
    "cifar10": "vdvae_cifar10",
    "imagenet32": "vdvae_imagenet32",
    "imagenet64": "vdvae_imagenet64",
    "ffhq_256": "vdvae_ffhq256",
    "ffhq_1024": "vdvae_ffhq1024",
}
# The original's settings of the network as our keys.
KEYS = {
    "image_size": "input_dimension",
    "image_channels": "image_channels",
    "enc_blocks": "enc_blocks",
    "dec_blocks": "dec_blocks",
    "width": "width",
    "custom_width_str": "custom_width",
    "zdim": "latent_size",
    "bottleneck_multiple": "bottleneck_multiple",
    "no_bias_above": "no_bias_above",
    "num_mixtures": "n_mix",
}


def matches(state: Mapping[str, Tensor]) -> bool:
    """Return whether the weights have the names of the original VDVAE."""
    return "encoder.in_conv.weight" in state and "decoder.gain" in state


def weights_of(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights unchanged: the original has our shapes."""
    return state


_PARTS = {
    "posterior_block": "enc",
    "prior_block": "prior",
    "z_projection": "z_proj",
    "output_block": "resnet",
}
_NAMES = (
    (r"encoder\.blocks\.", "encoder.enc_blocks."),
    (r"groups\.(\d+)\.(\w+)", lambda match: f"decoder.dec_blocks.{match[1]}.{_PARTS[match[2]]}"),
    (r"stream_biases\.", "decoder.bias_xs."),
    (r"output\.", "decoder.out_net.out_conv."),
    (r"(gain|bias)$", r"decoder.\1"),
)


def key_map(model: VDVAE) -> KeyMap:
    """Return the original's name of every tensor of our network."""
    return {name: _original_name(name) for name in model.state_dict()}


def _original_name(name: str) -> str:
    for pattern, replacement in _NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


# ------------------------------------------------------------------------------------- the config of a checkpoint


def config_of(content: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> tuple[ModelConfig, list[str]]:
    """Return the config of a checkpoint, and warnings about assumptions. Raises UserError.

    The settings are those of the log beside the file, PREFIX-log.jsonl beside PREFIX-model-ema.th. Without a log, they
    are those of the published config with as many channels, mixtures and blocks.
    """
    log = Path(re.sub(r"-model(-ema)?\.th$", "", source) + "-log.jsonl")
    settings = _settings(log) if log.is_file() else {}
    if "dataset" in settings:
        return config_of_settings(settings, str(log)), [f"config: the settings in {log}"]
    shape = _shape_of_weights(state, source)
    for name in PUBLISHED.values():
        config = load_config(name)
        assert isinstance(config, VDVAEConfig)
        blocks = len(blocks_of("enc_blocks", config.enc_blocks)), len(blocks_of("dec_blocks", config.dec_blocks))
        if shape == (config.width, config.n_mix, *blocks):
            because = f"{log} has no settings" if log.is_file() else f"there is no {log}"
            return config, [f"config: taken from model_configs/{name}.yaml, which has these shapes, because {because}"]
    raise InteropError(
        f"{source}: got a network of {shape[0]} channels with {shape[2]} blocks in the encoder and {shape[3]} in the "
        f"decoder, which is none of the published ones, and there is no file '{log}' with its settings.",
        Remedy.MODEL_CONFIG,
    )


def _shape_of_weights(state: Mapping[str, Tensor], source: str) -> tuple[int, int, int, int]:
    """Return the width, the mixtures, and the blocks of the encoder and of the decoder."""
    try:
        width = state["encoder.in_conv.weight"].shape[0]
        mixtures = state["decoder.out_net.out_conv.weight"].shape[0] // 10
    except (LookupError, AttributeError) as error:
        raise InteropError(f"{source} lacks the first or the last convolution of a VDVAE.") from error
    encoder, decoder = (count_numbers(state, rf"{part}_blocks\.(\d+)\.") for part in (r"encoder\.enc", r"decoder\.dec"))
    return width, mixtures, encoder, decoder


def config_of_settings(settings: Mapping[str, Any], source: str) -> ModelConfig:
    """Return the published config of the settings' data set, with the settings' network in place of its own.

    settings: by the original's names. Raises InteropError.
    """
    # A log may write 100 as 100.0; keys that take any number take 100 too.
    settings = {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in settings.items()}
    name = PUBLISHED.get(str(settings.get("dataset")))
    if name is None:
        raise InteropError(
            f"{source} names the data set {str(settings.get('dataset'))[:100]!r}, expected {' or '.join(PUBLISHED)}: "
            "the size of the images is not known.",
            Remedy.MODEL_CONFIG,
        )
    data = load_config(name).model_dump()
    data |= {ours: settings[theirs] for theirs, ours in KEYS.items() if theirs in settings}
    try:
        return config_from_dict(data, source, resolved=True)
    except ConfigError as error:
        raise InteropError(f"{source} has settings that no network has: {error}", Remedy.MODEL_CONFIG) from error


def _settings(log: Path) -> dict[str, Any]:
    """Return the settings in a log of JSON lines. A line is {"type": "hparam", "key": ..., "value": ...}."""
    settings: dict[str, Any] = {}
    try:
        with log.open(encoding="utf-8") as lines:
            for line in lines:
                if '"hparam"' in line and (entry := json.loads(line)).get("type") == "hparam":
                    settings[str(entry["key"])] = entry["value"]
    except OSError as error:
        raise InteropError(f"{log} cannot be read: {error.strerror}.", Remedy.MODEL_CONFIG) from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InteropError(f"{log} is damaged: a line of it is no setting in JSON.", Remedy.MODEL_CONFIG) from error
    return settings
