"""The config of the DVP-VAE family."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nvae.models.ladder.config import LadderConfig, LadderTrainingParameters
from nvae.schema import TrainingParameters


class DVPTrainingParameters(LadderTrainingParameters):
    """The training schedule of a DVP-VAE: that of a Ladder VAE, and epochs of the context alone."""

    pretrain_prior_epochs: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0,
        description="First epochs, of all epochs, whose loss is the KL of the context alone, at the weight 1: they "
        "train the prior of the context and its variance, and nothing else; 0 for none.",
    )

    def of_one_epoch(self) -> TrainingParameters:
        """Return a schedule of one epoch, of the whole model."""
        return super().of_one_epoch().model_copy(update={"pretrain_prior_epochs": 0})


MAX_WEIGHTS = 2**28  # of the linear context: 1 GiB


class DVPConfig(LadderConfig):
    """The keys of the family dvp: those of the family ladder, and the context."""

    family: Literal["dvp"] = Field(  # type: ignore[assignment]  # pydantic replaces the field of the base class
        "dvp", description="DVP-VAE, a Ladder VAE below a context with a diffusion prior (Kuzina and Tomczak 2024)."
    )
    context: Literal["dct", "downsample", "linear"] = Field(
        "dct",
        description="The context, a summary of the image above all latent groups: its lowest DCT coefficients, the "
        "image at a low resolution, or a learned linear map of its pixels.",
    )
    context_size: Annotated[int, Field(ge=1, le=4096)] = Field(
        7, description="Rows and columns of the context's coefficients or pixels."
    )
    top_prior: Literal["standard", "gaussian", "mixture", "vampprior", "diffusion"] = Field(
        "diffusion",
        description="Prior of the context: standard, gaussian, mixture: Normals without a network; vampprior: the "
        "posteriors of learned pseudo-inputs; diffusion.",
    )
    training_parameters: DVPTrainingParameters = Field(DVPTrainingParameters(), description="The training schedule.")

    @model_validator(mode="after")
    def _consistent_context(self) -> DVPConfig:
        if self.context_size > self.input_dimension:
            self.refuse("context_size", f"at most input_dimension, {self.input_dimension}")
        if self.top_prior == "diffusion":
            self.check_diffusion_prior("context_size", self.context_size)
        weights = (self.image_channels * self.context_size * self.input_dimension) ** 2
        if self.context == "linear" and weights > MAX_WEIGHTS:
            self.refuse("context_size", f"at most {MAX_WEIGHTS} weights of the linear context, not {weights}")
        return self
