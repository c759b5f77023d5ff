"""The config of the VDVAE family, and its texts of blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

from pydantic import Field, model_validator

from nvae.schema import AUTO, MAX_SIZE, Channels, ModelConfig, PositiveRate, Rate, TrainingParameters
from nvae.schema.training import Decay, Epsilon, LearningRateSchedule, LossScale, OptimizerName
from nvae.system.errors import InvalidValueError

MAX_BLOCKS = 1000  # of an encoder or decoder; the largest published one has 78
MAX_WIDTH = 2**15  # channels inside a block
BLOCKS = {"enc_blocks": "blocks such as 32x11,32d2,16x6", "dec_blocks": "blocks such as 1x1,4m1,4x2"}
WIDTHS = "channels by resolution, such as 16:64,8:128"
Text = Annotated[str, Field(max_length=2000)]


class Block(NamedTuple):
    """A block at a resolution. factor: of the pooling after the block. source: the resolution whose stream is added."""

    resolution: int
    factor: int | None = None
    source: int | None = None


class VDVAETrainingParameters(TrainingParameters):
    """The training schedule of a VDVAE: a constant learning rate, the full KL from the start, an EMA of the weights."""

    optimizer: OptimizerName = Field("adamw", description="The optimizer.")
    optimizer_epsilon: Epsilon = Field(1e-8, description="Added to the denominator of the optimizer's update.")
    optimizer_betas: tuple[Decay, Decay] = Field(
        (0.9, 0.9),
        strict=False,  # a list in YAML
        description="Decay rates of the optimizer's running means of the gradient and of its size.",
    )
    learning_rate: PositiveRate = Field(2e-4, description="Highest learning rate.")
    learning_rate_schedule: LearningRateSchedule = Field(
        "constant",
        description="The learning rate after its warm-up: a cosine; a cosine that starts again after every "
        "learning_rate_period; down and up again on straight lines within every learning_rate_period; constant; or "
        "multiplied by plateau_factor whenever the validation ELBO has not improved for plateau_patience epochs.",
    )
    weight_decay: Rate = Field(1e-2, description="Weight decay of the optimizer.")
    kl_balancing: bool = Field(False, description="Balance the KL across latent groups during the KL warm-up.")
    warmup_epochs: Rate = Field(
        0.0, description="Epochs of the KL warm-up: the weight of the KL rises linearly to 1; 0 for none."
    )
    loss_scale: LossScale = Field(
        "nats_per_dimension",
        description="Unit of the ELBO in the loss: nats per image, nats / number of subpixels, or that / ln 2 (bits). "
        "Gradients, and so gradient_clipping, gradient_skip_threshold and optimizer_epsilon, are in this unit.",
    )
    gradient_clipping: PositiveRate | None = Field(
        200.0, description="Largest norm of the gradient, larger ones are scaled down; null for no clipping."
    )
    gradient_skip_threshold: PositiveRate | None = Field(
        400.0, description="Skip a step whose gradient norm is larger; null to skip only steps that are not finite."
    )
    skip_high_losses: bool = Field(
        False, description="Skip a step whose loss is far above the losses of the last 200 steps (docs/training.md)."
    )
    ema_decay: Decay | None = Field(
        0.999,
        description="Decay of the exponential moving average (EMA) of the weights, such as 0.999: the part that stays "
        "at every step. Validation, pictures and the result use the average; null for none.",
    )


class VDVAEConfig(ModelConfig):
    """The keys of the family vdvae."""

    family: Literal["vdvae"] = Field("vdvae", description="Very Deep VAE (Child 2021).")
    enc_blocks: Text = Field(
        description="Blocks of the encoder, finest first: 32x11 is 11 blocks at 32x32, 32d2 one block with average "
        "pooling by 2 after it; auto: blocks that suit the size of the images."
    )
    dec_blocks: Text = Field(
        description="Blocks of the decoder, each with a latent group: 4x2 is two blocks at 4x4, 4m1 one block that "
        "first adds the upsampled stream of 1x1; auto: blocks that suit the size of the images."
    )
    width: Channels = Field(384, description="Channels at the finest resolution and at those not in custom_width.")
    custom_width: Text = Field(
        "",
        description="Channels at other resolutions, such as 16:64,8:128; not fewer than at the next finer one; auto: "
        "those of enc_blocks: auto, twice as many after every pooling by 2, up to four times the width.",
    )
    latent_size: Channels = Field(16, description="Channels of z in every latent group.")
    bottleneck_multiple: Annotated[float, Field(gt=0, le=16)] = Field(
        0.25, description="Channels inside a block, relative to its channels."
    )
    block_convolutions: Literal[3, 4] = Field(
        4, description="Convolutions of a block: 4 for 1x1, 3x3, 3x3, 1x1 as published; 3 for one 3x3."
    )
    activation: Literal["gelu", "silu"] = Field("gelu", description="Activation function; silu is faster on a CPU.")
    resampling: Literal["fixed", "learned"] = Field(
        "fixed",
        description="From one resolution to another: fixed for average pooling and nearest-neighbor upsampling, as "
        "published; learned for convolutions that start near these.",
    )
    no_bias_above: Annotated[int, Field(ge=0, le=MAX_SIZE)] = Field(
        64, description="Largest resolution whose stream starts from learned numbers, not from zeros."
    )
    no_latents_above: Annotated[int, Field(ge=1, le=MAX_SIZE)] | None = Field(
        None,
        description="Largest resolution with latent groups: decoder blocks above it have none, and cost a third; null "
        "for latent groups everywhere.",
    )
    patch_size: Annotated[int, Field(ge=1, le=16)] = Field(
        1,
        description="Side of the square of pixels that is one position of the network: with 2, images at 32x32 are "
        "16x16 positions, and enc_blocks begins at 16.",
    )
    output_width: Annotated[int, Field(ge=0, le=2**10)] = Field(
        0,
        description="Channels at the resolution of the images, before a last 3x3 convolution; 0 for none: the last "
        "convolution is 1x1, before positions become pixels.",
    )
    sigma: Literal["exp", "bounded", "softplus"] = Field(
        "exp",
        description="From the network's output v to the sigma of priors and posteriors: exp(v); exp(5 tanh(v / 5)), "
        "which is bounded; or softplus with beta ln 2, which is 1 at 0 and grows linearly (Hazami et al. 2022).",
    )
    likelihood_tails: Literal["original", "exact"] = Field(
        "exact",
        description="Where the upper tail of a discretized logistic begins. exact: so that the probabilities of all "
        "values add up to 1; original: for coupled_logistic_mixture the likelihood of the original program, whose "
        "probabilities add up to 1 with 8 bits alone, for the others as in every family.",
    )
    pixel_mean: Annotated[float, Field(ge=0, le=255)] = Field(
        127.5, description="Subtracted from the pixels, 0 to 255, that the encoder sees."
    )
    pixel_std: Annotated[float, Field(gt=0, le=255)] = Field(
        64.0, description="Divides the pixels that the encoder sees, after pixel_mean is subtracted."
    )
    training_parameters: VDVAETrainingParameters = Field(
        VDVAETrainingParameters(), description="The training schedule."
    )

    @model_validator(mode="before")
    @classmethod
    def _fit_blocks(cls, data: Any) -> Any:
        """Replace `auto` of the blocks and widths; where other keys are no numbers, validation refuses these first."""
        if not isinstance(data, dict):
            return data
        side = data.get("input_dimension", cls.model_fields["input_dimension"].default)
        width = data.get("width", cls.model_fields["width"].default)
        patch = data.get("patch_size", cls.model_fields["patch_size"].default)
        if not all(type(number) is int and 1 <= number <= MAX_SIZE for number in (side, width, patch)) or side % patch:
            return data
        fitting = fitting_blocks(side // patch, width)
        return data | {key: text for key, text in fitting.items() if data.get(key) == AUTO}

    @model_validator(mode="after")
    def _consistent_blocks(self) -> VDVAEConfig:
        if self.input_dimension % self.patch_size:
            self.refuse("patch_size", f"a factor of input_dimension, {self.input_dimension}")
        parse_widths(self.custom_width)
        if self.width_at(self.finest_resolution) != self.width:
            self.refuse("custom_width", f"{self.width} channels at {self.finest_resolution}, as the key width says")
        _check_decoder(self, _check_encoder(self))
        return self

    @property
    def finest_resolution(self) -> int:
        """The positions on a side of the network's finest streams."""
        return self.input_dimension // self.patch_size

    def has_latents(self, block: Block) -> bool:
        """Return whether a block of the decoder has a latent group."""
        return self.no_latents_above is None or block.resolution <= self.no_latents_above

    def width_at(self, resolution: int) -> int:
        """Return the channels at a resolution."""
        return parse_widths(self.custom_width).get(resolution, self.width)

    def hidden_width_at(self, resolution: int) -> int:
        """Return the channels inside a block at a resolution."""
        return int(self.width_at(resolution) * self.bottleneck_multiple)


@cache
def parse_widths(text: str) -> dict[int, int]:
    """Return the channels by resolution of a text such as 16:64,8:128. Raises InvalidValueError."""
    widths: dict[int, int] = {}
    for part in text.split(",") if text else ():
        match = re.fullmatch(r" *([0-9]{1,4}):([0-9]{1,4}) *", part)
        if match is None or not int(match[1]) or not int(match[2]) or int(match[1]) in widths:
            raise InvalidValueError("custom_width", text, f"{WIDTHS}, each resolution once, not {part.strip()!r}")
        widths[int(match[1])] = int(match[2])
    return widths


def parse_blocks(key: Literal["enc_blocks", "dec_blocks"], text: str) -> list[tuple[Block, int]]:
    """Return the blocks of a text such as 4m1,4x2, and for each the position of its entry in the text, from 1.

    Raises InvalidValueError.
    """
    blocks: list[tuple[Block, int]] = []
    position, letter = 1, "d" if key == "enc_blocks" else "m"
    for part in text.split(","):
        match = re.fullmatch(rf" *([0-9]{{1,4}})(?:([x{letter}])([0-9]{{1,4}}))? *", part)
        numbers = (int(match[1]), int(match[3] or 1)) if match else (0, 0)
        if match is None or not all(numbers):
            _refuse_entry(key, text, position, f"{part.strip()!r} is none of R, RxN and R{letter}K, from 1 to 9999")
        resolution, number = numbers
        if match[2] == "x" or match[2] is None:
            blocks += [(Block(resolution), position)] * number
        else:
            block = Block(resolution, factor=number) if letter == "d" else Block(resolution, source=number)
            blocks.append((block, position))
        if len(blocks) > MAX_BLOCKS:
            _refuse_entry(key, text, position, f"{len(blocks)} blocks are more than {MAX_BLOCKS}")
        position += len(part) + 1
    return blocks


def blocks_of(key: Literal["enc_blocks", "dec_blocks"], text: str) -> list[Block]:
    """Return the blocks of a text such as 4m1,4x2. Raises InvalidValueError."""
    return [block for block, _ in parse_blocks(key, text)]


def _refuse_entry(key: str, text: str, position: int, problem: str) -> NoReturn:
    raise InvalidValueError(key, text, f"{BLOCKS[key]}; at character {position}, {problem}")


def _check_encoder(config: VDVAEConfig) -> set[int]:
    """Return the resolutions that have activations. Raises InvalidValueError for blocks that do not fit each other."""
    text, resolution, reached = config.enc_blocks, config.finest_resolution, {config.finest_resolution}
    for block, position in parse_blocks("enc_blocks", text):
        if block.resolution != resolution:
            problem = f"the block is at {block.resolution}, expected {resolution}"
            _refuse_entry("enc_blocks", text, position, problem)
        _check_width(config, block.resolution)
        if block.factor is None:
            continue
        if block.factor == 1 or resolution % block.factor:
            _refuse_entry("enc_blocks", text, position, f"{block.factor} is no factor of {resolution} above 1")
        resolution //= block.factor
        if config.width_at(resolution) < config.width_at(block.resolution):
            config.refuse("custom_width", f"at {resolution} as many channels as at {block.resolution}, or more")
        reached.add(resolution)
    return reached


def _check_decoder(config: VDVAEConfig, reached: set[int]) -> None:
    """Raise InvalidValueError for decoder blocks that do not fit each other or the encoder's resolutions."""
    text, blocks = config.dec_blocks, parse_blocks("dec_blocks", config.dec_blocks)
    used, started = {block.resolution for block, _ in blocks}, set[int]()
    if not config.has_latents(blocks[0][0]):
        config.refuse("no_latents_above", f"{blocks[0][0].resolution}, where dec_blocks begins, or above")
    for (before, _), (block, position) in pairwise(blocks):
        if config.has_latents(block) and not config.has_latents(before):
            problem = f"a block with latents follows one above no_latents_above, {config.no_latents_above}"
            _refuse_entry("dec_blocks", text, position, problem)
    for block, position in blocks:
        if block.resolution not in reached:
            _refuse_entry("dec_blocks", text, position, f"the encoder has no activations at {block.resolution}")
        _check_width(config, block.resolution)
        if (source := block.source) is not None:
            if source >= block.resolution or block.resolution % source:
                _refuse_entry("dec_blocks", text, position, f"{source} is no factor of {block.resolution} below it")
            if source not in started and (source > config.no_bias_above or source not in used):
                _refuse_entry("dec_blocks", text, position, f"no stream at {source} has begun")
            if config.width_at(source) < config.width_at(block.resolution):
                config.refuse("custom_width", f"at {source} as many channels as at {block.resolution}, or more")
        started.add(block.resolution)
    if min(reached) not in used:
        config.refuse(
            "enc_blocks", f"blocks down to {min(used)}, the lowest resolution of dec_blocks, not {min(reached)}"
        )
    finest = config.finest_resolution
    if blocks[-1][0].resolution != finest:
        _refuse_entry("dec_blocks", text, blocks[-1][1], f"the last block is not at {finest}")
    last = {block.resolution: (index, position) for index, (block, position) in enumerate(blocks)}
    for resolution, (index, position) in last.items():
        if resolution != finest and all(block.source != resolution for block, _ in blocks[index:]):
            _refuse_entry("dec_blocks", text, position, f"no later block adds the stream of {resolution}")


def _check_width(config: VDVAEConfig, resolution: int) -> None:
    if not 1 <= (hidden := config.hidden_width_at(resolution)) <= MAX_WIDTH:
        allowed = f"a number that gives blocks at {resolution} from 1 to {MAX_WIDTH} channels inside, not {hidden}"
        config.refuse("bottleneck_multiple", allowed)


def fitting_blocks(side: int, width: int) -> Mapping[str, str]:
    """Return what `auto` stands for in enc_blocks, dec_blocks and custom_width, for images of a size.

    The resolution is halved while it is even and above 4, and then pooled to 1x1. The finest resolution has one block
    in the encoder and one in the decoder, the coarser ones more.
    """
    sides = [side]
    while sides[-1] > 1:
        sides.append(sides[-1] // 2 if sides[-1] % 2 == 0 and sides[-1] > 4 else 1)
    encoder, decoder = ["1x1"], ["1x1"]
    for level in reversed(range(len(sides) - 1)):
        here, coarser = sides[level : level + 2]
        encoder = [f"{here}x{2 if level else 1}", f"{here}d{here // coarser}", *encoder]
        decoder += [f"{here}m{coarser}", *([f"{here}x2"] if level else [])]
    widths = [f"{here}:{width * min(2**level, 4)}" for level, here in enumerate(sides) if level]
    return {"enc_blocks": ",".join(encoder), "dec_blocks": ",".join(decoder), "custom_width": ",".join(widths)}
