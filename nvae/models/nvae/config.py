"""The config of the NVAE family: the keys of the seed project and of the original NVAE.

The flat keys are the format of the seed project. Every other key extends the format and defaults to the seed
project's behavior, or, with `style: nvlabs`, to the original NVAE's behavior (`STYLES`).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationInfo, model_validator

from nvae.schema import AUTO, MAX_SIZE, WARMUPS, Channels, ModelConfig, Rate, Section, TrainingParameters

MAX_CELLS = 600  # of a whole network; the largest published one has 292, and takes seconds to build
MAX_WIDTH = 2**17  # channels of the widest layer
Cells = Annotated[int, Field(ge=1, le=100)]
MAX_GROUPS = 1000
Groups = Annotated[int, Field(ge=1, le=MAX_GROUPS)]

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

# The defaults that a style changes; the defaults below are the style `mgp123`. Each of these keys can be set by itself.
STYLES: dict[str, dict[str, Any]] = {
    "mgp123": {},
    "nvlabs": {
        "cells_per_input_dec": 2,
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
            "spectral_iterations": 4,
            "spectral_scope": "all",
        },
    },
}


class Towers(Section):
    """A number for the bottom-up (encoder) and one for the top-down (decoder) network."""

    model_config = ConfigDict(
        json_schema_extra={"allowed": "a whole number for both towers, or a section with encoder and decoder"}
    )

    encoder: Channels = Field(description="The number in the bottom-up network.")
    decoder: Channels = Field(description="The number in the top-down network.")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        """Expand the short form `channel_towers: 32`: the same number in both towers."""
        return {"encoder": value, "decoder": value} if type(value) is int else value


class CellsPerBlock(Towers):
    """Two cells in a tower that is left out."""

    encoder: Channels = Field(2, description="The number in the bottom-up network.")
    decoder: Channels = Field(2, description="The number in the top-down network.")


class NVAETrainingParameters(TrainingParameters):
    """The training schedule of an NVAE, with the regularization of Vahdat and Kautz 2020, appendix A."""

    FIXED: ClassVar[frozenset[str]] = TrainingParameters.FIXED | {"spectral_scope"}

    regularization_constant: Rate = Field(
        5e-2, description="Weight of the spectral and of the batch-norm regularization; 0 for none."
    )
    spectral_exponent: Literal[1, 2] = Field(
        2, description="Power of the largest singular values in the spectral regularization."
    )
    spectral_iterations: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="Power iterations per training step, from the vectors of the last step, for the singular values."
    )
    spectral_scope: Literal["cells_and_heads", "all"] = Field(
        "cells_and_heads",
        description="Convolutions in the spectral regularization: in cells and in the heads that give priors and "
        "posteriors, or all.",
    )


class NVAEConfig(ModelConfig):
    """The keys of the family nvae."""

    PRESETS: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {"style": STYLES}

    family: Literal["nvae"] = Field("nvae", description="NVAE (Vahdat and Kautz 2020).")
    style: Literal["mgp123", "nvlabs"] = Field(
        "mgp123", description="Set of defaults: the seed project's (mgp123) or the original NVAE's (nvlabs)."
    )
    channel_towers: Towers = Field(description="Channels at full resolution.")
    number_of_scales: Annotated[int, Field(ge=1, le=12)] = Field(description="Resolutions that have latent groups.")
    groups_per_scale: tuple[Groups, ...] | None = Field(
        None,
        strict=False,  # a list in YAML
        description="Latent groups of every scale, coarsest scale first, such as [5, 10]; replaces "
        "initial_splits_per_scale, exponential_scaling and min_splits. Null: these three give the numbers.",
    )
    initial_splits_per_scale: Groups = Field(
        description="Latent groups at the finest scale; groups_per_scale makes this key superfluous."
    )
    exponential_scaling: Groups = Field(
        1, description="Divisor of the number of groups from one scale to the next coarser scale."
    )
    min_splits: Groups = Field(1, description="Smallest number of groups of a coarser scale.")
    latent_size: Channels | Annotated[tuple[Channels, ...], Field(strict=False)] = Field(
        description="Channels of z in every latent group: a number, or a list of one per scale, coarsest scale first."
    )
    padding: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="Black margin in pixels around the images, which the likelihood leaves out, such as 2 for images "
        "of 28x28 on a network of 32x32; auto: the smallest margin with which the network's downsamplings fit.",
    )
    num_flows: Annotated[int, Field(ge=0, le=100)] = Field(
        0, description="Pairs of autoregressive flow cells on the posterior of every group."
    )
    fixed_flows: bool = Field(False, description="Apply the flows to the prior too.")
    flow_columns: Literal["left", "right"] = Field(
        "right", description="The side of a value's row that a flow cell sees; a mirrored cell sees the other side."
    )
    num_blocks_prepost: Annotated[int, Field(ge=0, le=12)] = Field(
        1, description="Blocks that downsample before the first latents, and that upsample after the last."
    )
    num_cells_per_block_prepost: CellsPerBlock = Field(CellsPerBlock(), description="Cells in each of these blocks.")
    cells_per_split_enc: Cells = Field(2, description="Cells per latent group in the bottom-up network.")
    cells_per_input_dec: Cells = Field(1, description="Cells per latent group in the top-down network.")
    channel_multiplier: Annotated[int, Field(ge=1, le=16)] = Field(
        2, description="Factor on the channels at every downsampling."
    )
    arch_instance: ArchInstance = Field(
        "res_mbconv",
        description="The types of cells, named as in the original NVAE: res_mbconv has residual cells in the encoder "
        "and inverted residual cells in the decoder.",
    )
    plain_vae: bool = Field(
        False,
        description="A single group of latents between encoder and decoder, without towers and learned constant. "
        "Style nvlabs: True for a model of one group.",
    )
    residual_posterior: bool = Field(
        True, description="The network gives the posterior's parameters relative to the prior's."
    )
    squeeze_excitation: Literal["none", "half", "sixteenth"] = Field(
        "half", description="Hidden width of squeeze-and-excitation, relative to the channels (at least 4)."
    )
    weight_normalization: Literal["linear", "exponential"] = Field(
        "linear", description="The learned norm of a weight: the norm itself, or its logarithm."
    )
    normalize_cells: bool = Field(False, description="Weight normalization in residual cells, skips and flows too.")
    spectral_normalization: bool = Field(
        False, description="Divide the weight of every convolution outside flows by its largest singular value."
    )
    downsample_skip: Literal["aligned", "shifted"] = Field(
        "aligned",
        description="The four convolutions of a downsampling skip see the same pixel of each square, or one each.",
    )
    upsample_skip_bias: bool = Field(True, description="A bias in the convolution of an upsampling skip.")
    postprocess_upsample: Literal["first", "last"] = Field(
        "last", description="Which cell of a post-processing block upsamples."
    )
    initial_constant: Literal["normal", "uniform"] = Field(
        "normal", description="Initial distribution of the learned constant at the top."
    )
    temperature_scales_min_sigma: bool = Field(
        False, description="The temperature scales the smallest sigma, 0.01, too."
    )
    training_parameters: NVAETrainingParameters = Field(NVAETrainingParameters(), description="The training schedule.")

    @model_validator(mode="before")
    @classmethod
    def _style_defaults(cls, data: Any, info: ValidationInfo) -> Any:
        """Use the style's values for the keys that the file leaves out, unless the file is a resolved config."""
        resolved = isinstance(info.context, dict) and info.context["resolved"]
        if resolved or not isinstance(data, dict) or not isinstance(data.get("style", "mgp123"), str):
            return data
        style = STYLES.get(data.get("style", "mgp123"), {})
        if style:  # the original has no other model of a single group
            single = (data.get("number_of_scales"), data.get("initial_splits_per_scale")) == (1, 1)
            style = style | {"plain_vae": single}
        filled, schedule = _filled(data, style), data.get("training_parameters")
        if style and isinstance(schedule, dict) and any(schedule.get(key) is not None for key in WARMUPS):
            filled["training_parameters"] |= {"warmup_portion": schedule.get("warmup_portion")}
        return filled

    @model_validator(mode="before")
    @classmethod
    def _fit_padding(cls, data: Any) -> Any:
        """Replace `padding: auto` by a number; with other keys that are no numbers, validation refuses these first."""
        if not isinstance(data, dict) or data.get("padding") != AUTO:
            return data
        side = data.get("input_dimension", cls.model_fields["input_dimension"].default)
        blocks = data.get("num_blocks_prepost", cls.model_fields["num_blocks_prepost"].default)
        scales = data.get("number_of_scales")
        if not all(type(number) is int and 0 <= number <= MAX_SIZE for number in (side, blocks, scales)):
            return data
        return data | {"padding": -side % 2 ** max(blocks + scales - 1, 0) // 2}

    @model_validator(mode="before")
    @classmethod
    def _groups_of_the_finest_scale(cls, data: Any) -> Any:
        """Set initial_splits_per_scale to the last number of groups_per_scale, if that list is given."""
        groups = data.get("groups_per_scale") if isinstance(data, dict) else None
        if groups is None:
            return data
        finest = groups[-1] if isinstance(groups, list | tuple) and groups else 1
        return data | {"initial_splits_per_scale": finest if type(finest) is int and 0 < finest <= MAX_GROUPS else 1}

    @model_validator(mode="after")
    def _consistent_network(self) -> NVAEConfig:
        for key in ("groups_per_scale", "latent_size"):
            if isinstance(numbers := getattr(self, key), tuple) and len(numbers) != self.number_of_scales:
                self.refuse(key, f"{self.number_of_scales} numbers, one per scale, not {len(numbers)}")
        self._check_resolution()
        self._check_channels()
        if self.plain_vae and (self.number_of_scales, self.initial_splits_per_scale) != (1, 1):
            self.refuse("plain_vae", "False for a model of several latent groups")
        cells, blocks = self.num_cells_per_block_prepost, self.num_blocks_prepost
        per_group = self.cells_per_split_enc + self.cells_per_input_dec + 2 * self.num_flows
        total = sum(groups_finest_first(self)) * per_group + blocks * (cells.encoder + cells.decoder)
        if total > MAX_CELLS:
            allowed = f"a network of at most {MAX_CELLS} cells; these groups, flows and blocks have {total}"
            self.refuse("groups_per_scale" if self.groups_per_scale else "initial_splits_per_scale", allowed)
        return self

    def _check_resolution(self) -> None:
        side, downsamplings = self.input_dimension + 2 * self.padding, _downsamplings(self)
        if side % 2**downsamplings:
            self.refuse(
                "input_dimension",
                f"a multiple of {2**downsamplings}{', with the padding' if self.padding else ''}: num_blocks_prepost "
                f"{self.num_blocks_prepost} and number_of_scales {self.number_of_scales} downsample {downsamplings} "
                "times",
            )

    def _check_channels(self) -> None:
        towers, multiplier, blocks = self.channel_towers, self.channel_multiplier, self.num_blocks_prepost
        downsamplings = _downsamplings(self)
        if (widest := max(towers.encoder, towers.decoder) * multiplier**downsamplings) > MAX_WIDTH:
            allowed = f"at most {MAX_WIDTH} channels at the coarsest scale; these settings give {widest}"
            self.refuse("channel_multiplier", allowed)
        # Every downsampling skip gives a quarter of its channels to each of four convolutions.
        if downsamplings and (towers.encoder * multiplier) % 4:
            allowed = f"a number that divides by 4 when multiplied by channel_multiplier {multiplier}"
            self.refuse("channel_towers.encoder", allowed)
        if self.arch_instance == "mbconv_den":
            # The resolutions that have cells with grouped convolutions, as a number of downsamplings.
            first = 0 if self.postprocess_upsample == "first" and self.num_cells_per_block_prepost.decoder > 1 else 1
            for tower, counts in (("encoder", range(blocks)), ("decoder", range(first, blocks + 1))):
                channels = getattr(towers, tower)
                if blocks and any(3 * channels * multiplier**i % 8 for i in counts):
                    self.refuse(f"channel_towers.{tower}", "a multiple of 8, for the 8 groups of mbconv_den")

    @classmethod
    def prepare_override(cls, data: dict[str, Any], key: str, value: Any) -> None:
        """Expand `channel_towers: 32` before one tower is set."""
        super().prepare_override(data, key, value)
        section, dot, _ = key.partition(".")
        if dot and section in ("channel_towers", "num_cells_per_block_prepost") and type(data.get(section)) is int:
            data[section] = {"encoder": data[section], "decoder": data[section]}


def _downsamplings(config: NVAEConfig) -> int:
    """Return how often the encoder downsamples."""
    return config.num_blocks_prepost + config.number_of_scales - 1


def _filled(data: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return `data` with `defaults` for the missing keys, also inside sections."""
    result = dict(data)
    for key, default in defaults.items():
        if key not in data:
            result[key] = default
        elif isinstance(default, dict) and isinstance(data[key], dict):
            result[key] = _filled(data[key], default)
    return result


def groups_finest_first(config: NVAEConfig) -> tuple[int, ...]:
    """Return the latent groups per scale: groups_per_scale, or n, max(min_splits, n // exponential_scaling), ..."""
    if config.groups_per_scale:
        return config.groups_per_scale[::-1]
    groups = [config.initial_splits_per_scale]
    while len(groups) < config.number_of_scales:
        groups.append(max(config.min_splits, groups[-1] // config.exponential_scaling))
    return tuple(groups)
