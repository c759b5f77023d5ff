"""The keys of the prior of the first latent group."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nvae.schema import ModelConfig

NoiseSchedule = Literal["linear", "cosine"]
Parametrization = Literal["eps", "v"]
UNET_GROUPS = 16  # of the group norms
Gamma = Annotated[float, Field(ge=-30, le=30)]


class TopPriorConfig(ModelConfig):
    """The keys of families that can choose the prior of their first latent group."""

    prior_components: Annotated[int, Field(ge=1, le=10_000)] = Field(
        500, description="Components of the priors mixture and vampprior."
    )
    diffusion_steps: Annotated[int, Field(ge=1, le=10_000)] = Field(
        25, description="Steps of a sample from the diffusion prior, and terms of its bound in evaluation."
    )
    diffusion_schedule: NoiseSchedule = Field("linear", description="Noise over time in the diffusion prior.")
    diffusion_min_gamma: Gamma = Field(
        -6.0,
        description="Log of noise over signal at the start of the diffusion; also the first log variance of the "
        "context's posterior.",
    )
    diffusion_max_gamma: Gamma = Field(7.0, description="Log of noise over signal at the end of the diffusion.")
    diffusion_parametrization: Parametrization = Field(
        "eps", description="The network of the diffusion prior predicts the noise (eps), or the velocity (v)."
    )
    unet_channels: Annotated[int, Field(ge=UNET_GROUPS, le=8192, multiple_of=UNET_GROUPS)] = Field(
        16, description="Channels of the diffusion prior's U-Net."
    )
    unet_blocks: Annotated[int, Field(ge=1, le=100)] = Field(
        2, description="Residual blocks on each side of the diffusion prior's U-Net."
    )
    unet_attention_heads: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="Attention heads in the middle of the diffusion prior's U-Net."
    )
    unet_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout in the diffusion prior's U-Net."
    )

    @model_validator(mode="after")
    def _consistent_prior(self) -> TopPriorConfig:
        if self.diffusion_min_gamma >= self.diffusion_max_gamma:
            self.refuse("diffusion_min_gamma", f"less than diffusion_max_gamma, {self.diffusion_max_gamma:g}")
        if self.unet_channels % self.unet_attention_heads:
            self.refuse("unet_attention_heads", f"a divisor of unet_channels, {self.unet_channels}")
        return self

    def check_diffusion_prior(self, key: str, side: int) -> None:
        """Raise InvalidValueError for a diffusion prior of z of side x side whose group norms would see one number."""
        if self.unet_channels == UNET_GROUPS and side == 1:
            self.refuse(key, f"unet_channels of at least {2 * UNET_GROUPS} for a latent group of 1 x 1")
