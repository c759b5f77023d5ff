"""The config of the Ladder VAE family."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nvae.models.priors.config import TopPriorConfig
from nvae.schema import Channels, LearningRateDecay, PositiveRate, Rate, TrainingParameters
from nvae.schema.training import Epsilon

MAX_BLOCKS = 600  # of a whole network; the largest published one has 196
MAX_WIDTH = 2**17  # channels of the widest layer
Blocks = Annotated[int, Field(ge=0, le=100)]


class LadderTrainingParameters(TrainingParameters):
    """The training schedule of a Ladder VAE: no KL warm-up, a learning rate that falls along a cosine."""

    optimizer_epsilon: Epsilon = Field(1e-8, description="Added to the denominator of the optimizer's update.")
    learning_rate_warmup_epochs: Rate = Field(2.0, description="Epochs of a linear rise from zero to learning_rate.")
    learning_rate_decay: LearningRateDecay = Field(
        "after_its_warmup",
        description="Start of the cosine: after the KL warm-up, or after the learning rate's own; from_start: the "
        "cosine of all epochs, scaled so that it equals learning_rate at the end of the learning rate's warm-up.",
    )
    weight_decay: Rate = Field(0.0, description="Weight decay of the optimizer.")
    kl_balancing: bool = Field(False, description="Balance the KL across latent groups during the KL warm-up.")
    warmup_epochs: Rate = Field(
        0.0, description="Epochs of the KL warm-up: the weight of the KL rises linearly to 1; 0 for none."
    )


class LadderConfig(TopPriorConfig):
    """The keys of the family ladder."""

    family: Literal["ladder"] = Field(
        "ladder", description="Ladder VAE (Sønderby et al. 2016) as in Kuzina and Tomczak (2024)."
    )
    latents_per_scale: Annotated[tuple[Blocks, ...], Field(min_length=1, max_length=12)] = Field(
        strict=False,  # a list in YAML
        description="Latent groups per scale, finest scale first, such as [4, 4]; zeros only at the finest scales.",
    )
    latent_size: Channels = Field(1, description="Channels of z in every latent group.")
    channels: Channels = Field(32, description="Channels at the finest scale.")
    scale_multiplier: PositiveRate = Field(1.0, description="Factor on the channels from a scale to the next coarser.")
    hidden_multiplier: PositiveRate = Field(1.0, description="Channels inside a block, relative to its channels.")
    encoder: Literal["small", "plain"] = Field(
        "small", description="One feature map per scale (small), or one per latent group (plain)."
    )
    num_init_blocks: Blocks = Field(0, description="Blocks of the encoder before the first scale.")
    encoder_blocks_per_scale: Annotated[int, Field(ge=1, le=100)] = Field(
        3, description="Blocks per scale of the encoder; per latent group with encoder: plain."
    )
    decoder_blocks_per_latent: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="Blocks after the merge of each z."
    )
    num_postprocess_blocks: Blocks = Field(0, description="Blocks between the sum of all z and the output.")
    activation: Literal["silu", "relu", "elu", "gelu"] = Field("silu", description="The activation function.")
    batch_norm: bool = Field(False, description="Batch normalization in every block.")
    weight_norm: bool = Field(False, description="Weight normalization of the convolutions of blocks.")
    first_scale_at_image_size: bool = Field(
        False, description="Put the finest latents at the images' resolution instead of half of that."
    )
    min_log_variance: Annotated[float, Field(ge=-100, lt=1)] = Field(
        -10.0, description="Smallest log variance of priors and posteriors; the largest is 1."
    )
    pixel_mean: Annotated[float, Field(ge=0, le=255)] = Field(
        127.5, description="Subtracted from the pixels, 0 to 255, that the encoder sees."
    )
    pixel_std: Annotated[float, Field(gt=0, le=255)] = Field(
        127.5, description="Divides the pixels that the encoder sees, after pixel_mean is subtracted."
    )
    top_prior: Literal["learned", "standard", "gaussian", "mixture", "vampprior", "diffusion"] = Field(
        "learned",
        description="Prior of the first latent group: learned, a Normal from the network's first block; standard, "
        "gaussian, mixture: Normals without a network; vampprior: the posteriors of learned pseudo-inputs; diffusion.",
    )
    training_parameters: LadderTrainingParameters = Field(
        LadderTrainingParameters(), description="The training schedule."
    )

    @model_validator(mode="after")
    def _consistent_network(self) -> LadderConfig:
        counts = self.latents_per_scale
        if counts[-1] == 0 or any(first and not later for first, later in zip(counts, counts[1:], strict=False)):
            self.refuse("latents_per_scale", "zeros only before the first scale with latents")
        downsamplings = len(counts) - self.first_scale_at_image_size
        if self.input_dimension % 2**downsamplings:
            because = f"because {len(counts)} scales downsample {downsamplings} times"
            self.refuse("input_dimension", f"a multiple of {2**downsamplings}, {because}")
        blocks = sum(counts) * (2 + self.decoder_blocks_per_latent + self.encoder_blocks_per_scale)
        if (blocks := blocks + self.num_init_blocks + self.num_postprocess_blocks) > MAX_BLOCKS:
            self.refuse("latents_per_scale", f"at most {MAX_BLOCKS} blocks, not {blocks}")
        channels = channels_per_scale(self)
        widest = max(channels) * max(self.hidden_multiplier, 1)
        if min(channels) < 1 or widest > MAX_WIDTH:
            self.refuse("channels", f"1 to {MAX_WIDTH} channels at every scale")
        if int(min(channels) * self.hidden_multiplier) < 1:
            self.refuse("hidden_multiplier", f"at least {1 / min(channels):g}, for one channel in blocks")
        if self.family == "ladder" and self.top_prior == "vampprior" and self.batch_norm:
            self.refuse("batch_norm", "False with top_prior vampprior, whose pseudo-inputs would change the statistics")
        if self.family == "ladder" and self.top_prior == "diffusion":
            self.check_diffusion_prior("top_prior", self.input_dimension // 2**downsamplings)
        return self


def channels_per_scale(config: LadderConfig) -> list[int]:
    """Return the channels of every scale, finest first: c, int(c * scale_multiplier), ..."""
    channels = [config.channels]
    while len(channels) < len(config.latents_per_scale):
        channels.append(int(channels[-1] * config.scale_multiplier))
    return channels
