"""The config of the NVAE family: the keys of the seed project and of the original NVAE.

The flat keys are the format of the seed project. Every other key extends the format and defaults to the seed's
behavior, or, with `style: nvlabs`, to that of the original NVAE (`STYLES`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from nvae.migrations import migrate_config
from nvae.schema import (
    WARMUPS,
    Few,
    FewOrNone,
    Many,
    ModelConfig,
    NaturalFloat,
    PositiveInt,
    Section,
    TrainingParameters,
)

ArchInstance = Literal[
    "res_mbconv",
    "res_elu",
    "res_bnelu",
    "res_bnswish",
    "mbconv_sep",
    "mbconv_sep11",
    "res53_mbconv",
    "res35_mbconv",
    "res55_mbconv",
    "mbconv_res",
    "mbconv_den",
]

# What a style changes in the defaults below, which are those of `mgp123`. Every one of these keys can be set by itself.
STYLES: dict[str, dict[str, Any]] = {
    "mgp123": {},
    "nvlabs": {
        "pixel_range": "centered",
        "weight_normalization": "exponential",
        "normalize_cells": True,
        "squeeze_excitation": "sixteenth",
        "flow_columns": "left",
        "downsample_skip": "shifted",
        "upsample_skip_bias": False,
        "postprocess_upsample": "first",
        "initial_constant": "uniform",
        "temperature_scales_min_sigma": True,
        "sampling_method": "coupled_logistic_mixture",
        "n_mix": 10,
        "training_parameters": {
            "learning_rate_min": 1e-4,
            "learning_rate_warmup_epochs": 5.0,
            "learning_rate_decay": "after_its_warmup",
            "warmup_portion": 0.3,
            "warmup_delay_portion": 1e-4,
            "regularization_constant": 1e-2,
            "spectral_exponent": 1,
            "spectral_scope": "all",
        },
    },
}


class Towers(Section):
    """A number for the bottom-up (encoder) and one for the top-down (decoder) network."""

    encoder: Many
    decoder: Many


TOWER_KEYS = ("channel_towers", "num_cells_per_block_prepost")


def _same_towers(value: Any) -> Any:
    """`channel_towers: 32` is short for the same number in both towers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"encoder": value, "decoder": value}
    return value


def _cells_of_both(value: Any) -> Any:
    """As in `channel_towers`, but a tower that is not mentioned has its default."""
    value = _same_towers(value)
    return CELLS_PER_BLOCK.model_dump() | value if isinstance(value, dict) else value


BothTowers = Annotated[Towers, BeforeValidator(_same_towers)]
CELLS_PER_BLOCK = Towers(encoder=2, decoder=2)


class NVAETrainingParameters(TrainingParameters):
    """The training schedule of an NVAE, with the regularization of Vahdat and Kautz 2020, appendix A."""

    regularization_constant: NaturalFloat = 5e-2
    spectral_exponent: Literal[1, 2] = 2
    spectral_scope: Literal["cells_and_heads", "all"] = "cells_and_heads"


class NVAEConfig(ModelConfig):
    """A whole model. Field names are the YAML keys; see the README's reference for what each one means."""

    family: Literal["nvae"] = "nvae"
    style: Literal["mgp123", "nvlabs"] = "mgp123"
    channel_towers: BothTowers
    number_of_scales: Annotated[int, Field(gt=0, le=12)]
    initial_splits_per_scale: Annotated[int, Field(gt=0, le=1000)]
    exponential_scaling: PositiveInt = 1
    min_splits: Annotated[int, Field(gt=0, le=1000)] = 1
    latent_size: Many
    padding: Annotated[int, Field(ge=0, le=1000)] = 0
    num_flows: FewOrNone = 0
    fixed_flows: bool = False
    flow_columns: Literal["left", "right"] = "right"
    num_blocks_prepost: Annotated[int, Field(ge=0, le=12)] = 1
    num_cells_per_block_prepost: Annotated[Towers, BeforeValidator(_cells_of_both)] = CELLS_PER_BLOCK
    cells_per_split_enc: Few = 2
    cells_per_input_dec: Few = 2
    channel_multiplier: Annotated[int, Field(gt=0, le=16)] = 2
    arch_instance: ArchInstance = "res_mbconv"
    plain_vae: bool = False
    residual_posterior: bool = True
    squeeze_excitation: Literal["none", "half", "sixteenth"] = "half"
    weight_normalization: Literal["linear", "exponential"] = "linear"
    normalize_cells: bool = False
    spectral_normalization: bool = False
    downsample_skip: Literal["aligned", "shifted"] = "aligned"
    upsample_skip_bias: bool = True
    postprocess_upsample: Literal["first", "last"] = "last"
    initial_constant: Literal["normal", "uniform"] = "normal"
    temperature_scales_min_sigma: bool = False
    training_parameters: NVAETrainingParameters = NVAETrainingParameters()

    @model_validator(mode="before")
    @classmethod
    def _style(cls, data: Any) -> Any:
        """Put the style's values where the file says nothing."""
        data = migrate_config(data)
        if not isinstance(data, dict) or not isinstance(data.get("style", "mgp123"), str):
            return data
        style = STYLES.get(data.get("style", "mgp123"), {})
        if style:  # the original has no other model of a single group
            single = (data.get("number_of_scales"), data.get("initial_splits_per_scale")) == (1, 1)
            style = style | {"plain_vae": single}
        filled, schedule = _filled(data, style), data.get("training_parameters")
        if style and isinstance(schedule, dict) and any(schedule.get(key) is not None for key in WARMUPS):
            filled["training_parameters"] |= {"warmup_portion": schedule.get("warmup_portion")}
        return filled

    @model_validator(mode="after")
    def _possible(self) -> NVAEConfig:
        halvings = self.num_blocks_prepost + self.number_of_scales - 1
        side = self.input_dimension + 2 * self.padding
        if side % 2**halvings:
            padded = f" plus {2 * self.padding} of padding" if self.padding else ""
            raise ValueError(
                f"input_dimension|is {self.input_dimension}{padded}, which num_blocks_prepost "
                f"{self.num_blocks_prepost} and number_of_scales {self.number_of_scales} halve {halvings} times|a "
                f"multiple of {2**halvings} in all"
            )
        if self.plain_vae and (self.number_of_scales, self.initial_splits_per_scale) != (1, 1):
            raise ValueError(
                f"plain_vae|is True with {self.number_of_scales} scales of {self.initial_splits_per_scale} groups|one "
                "scale of one group, or False"
            )
        if self.arch_instance == "mbconv_den":
            # Where its grouped cells are, counted in halvings.
            blocks, first = self.num_blocks_prepost, 1
            if self.postprocess_upsample == "first" and self.num_cells_per_block_prepost.decoder > 1:
                first = 0
            for tower, places in (("encoder", range(blocks)), ("decoder", range(first, blocks + 1))):
                channels = getattr(self.channel_towers, tower)
                if blocks and any(3 * channels * self.channel_multiplier**i % 8 for i in places):
                    raise ValueError(
                        f"channel_towers|has {channels} channels in the {tower}, which mbconv_den puts into 8 groups|a "
                        "multiple of 8"
                    )
        if self.sampling_method == "coupled_logistic_mixture" and self.image_channels != 3:
            raise ValueError(
                f"sampling_method|is coupled_logistic_mixture with image_channels {self.image_channels}|3 channels, or "
                "bernoulli or logistic_mixture for gray images"
            )
        if self.dataset.binarize and self.sampling_method != "bernoulli":
            raise ValueError(
                f"dataset.binarize|is True with sampling_method {self.sampling_method}|bernoulli, or False"
            )
        channels = self.channel_towers.encoder
        # Every halving cell's skip gives a quarter of its channels to each of four convolutions.
        if halvings and (channels * self.channel_multiplier) % 4:
            raise ValueError(
                f"channel_towers|has {channels} channels in the encoder, times channel_multiplier "
                f"{self.channel_multiplier} at each halving|a product that divides by 4"
            )
        schedule = self.training_parameters
        if schedule.learning_rate_min > schedule.learning_rate:
            raise ValueError(
                f"training_parameters.learning_rate_min|is {schedule.learning_rate_min:g}|at most learning_rate, "
                f"which is {schedule.learning_rate:g}"
            )
        if schedule.warmup_steps is not None and schedule.warmup_portion is not None:
            raise ValueError(
                f"training_parameters.warmup_steps|is {schedule.warmup_steps} beside warmup_portion "
                f"{schedule.warmup_portion:g}|one of the two"
            )
        return self


def _filled(data: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`data`, with `defaults` for the keys that it lacks, in sections too."""
    result = dict(data)
    for key, default in defaults.items():
        if key not in data:
            result[key] = default
        elif isinstance(default, dict) and isinstance(data[key], dict):
            result[key] = _filled(data[key], default)
    return result


def groups_per_scale(config: NVAEConfig) -> tuple[int, ...]:
    """Number of latent groups at each scale, finest first: n, max(min_splits, n // exponential_scaling), ..."""
    groups = [config.initial_splits_per_scale]
    while len(groups) < config.number_of_scales:
        groups.append(max(config.min_splits, groups[-1] // config.exponential_scaling))
    return tuple(groups)
