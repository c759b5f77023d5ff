"""HierarchicalVAE: the base class of every family, and the one top-down pass.

A family provides an encoder, one module per latent group, and a decoder of the last state. The pass from the
initial state to the likelihood's parameters is the same for every family and every use. Training, sampling, exploration
and interpolation differ only in where the z of each group comes from: a `LatentSource`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from nvae.models.distributions import (
    Distribution,
    Noise,
    PriorBound,
    kl_divergence,
    map_tensors,
    standard_normal,
)
from nvae.models.likelihoods import Likelihood, PixelDistribution
from nvae.schema import ModelConfig

State: TypeAlias = Any  # of the family: a tensor or a tuple of tensors, batch first


@dataclass(frozen=True)
class Level:
    """One level of the hierarchy: the number of latent groups and their shape.

    name: of a level that stands above the scales of the hierarchy, such as "context"; empty for a scale.
    """

    groups: int
    resolution: int  # pixels per side
    encoder_channels: int
    decoder_channels: int
    latent_size: int
    name: str = ""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.latent_size, self.resolution, self.resolution


@dataclass(frozen=True)
class GroupInfo:
    """What tools and evaluation need to know of a latent group beside its level. The defaults suit most groups."""

    is_spatial: bool = True  # rows and columns of z are places in the image; else coefficients of the whole image
    shared_draws: int = 0  # last draws in noise (N, *channels, h, w) that belong to z as a whole, not to positions
    bound: PriorBound | None = None  # of a prior whose log density is a lower bound


class LatentGroup(nn.Module):
    """The base class of a family's latent groups. `state` is the state that the groups above pass down."""

    level: Level

    @property
    def info(self) -> GroupInfo:
        return GroupInfo()

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape, without the batch, of the noise that the prior turns into z."""
        return self.level.latent_shape

    @property
    def posterior_noise_shape(self) -> tuple[int, ...]:
        """Shape, without the batch, of the noise in a posterior pass: for z, and for a prior that gives a bound."""
        return self.noise_shape

    def prior(self, state: State) -> tuple[State, Distribution]:
        """Return the state for `posterior` and `merge`, and p(z | z above)."""
        raise NotImplementedError

    def posterior(self, state: State, features: Any, prior: Any) -> Distribution:
        """Return q(z | x, z above). features: this group's element of `bottom_up`."""
        raise NotImplementedError

    def merge(self, state: State, z: Tensor) -> State:
        """Return the state after this group, from the state of `prior` and z."""
        raise NotImplementedError

    def image_of(self, z: Tensor) -> Tensor | None:
        """Return the images (B, C, S, S) in [0, 1] that z (B, *latent_shape) stands for; None if z is no image."""
        return None


@dataclass(frozen=True)
class GroupOutput:
    """The results of one group. posterior, kl, log_q and log_p are None if z does not come from a posterior."""

    z: Tensor
    prior: Distribution
    posterior: Distribution | None = None
    kl: Tensor | None = None  # (B,), nats
    log_q: Tensor | None = None  # (B,), nats, at z
    log_p: Tensor | None = None  # (B,), nats, at z


class DecoderState(NamedTuple):
    """The state of a pass right before a group's z is sampled; a later pass can start from this state."""

    group: int
    state: State
    prior: Distribution

    def repeated(self, count: int) -> DecoderState:
        """Return the state for `count` images, from the state of one image."""
        return map_tensors(self, lambda x: x.expand(count, *x.shape[1:]))


@dataclass(frozen=True)
class TopDownOutput:
    """The result of a top-down pass. A pass that started at group k has no results for the groups before k."""

    parameters: Tensor  # (B, P, H, W), of p(x | z)
    px_z: PixelDistribution
    groups: dict[int, GroupOutput]
    states: dict[int, DecoderState] = field(default_factory=dict)  # before each group; empty without return_states

    @property
    def kl(self) -> Tensor:
        """(B, G): the KL of every group, top group first, in nats."""
        return torch.stack([group.kl for group in self.groups.values() if group.kl is not None], dim=1)


# ------------------------------------------------------------------------------------------- where z comes from


class LatentSource(Protocol):
    """A function that returns z of one group, from the state before the group and the group's prior."""

    def __call__(self, index: int, group: LatentGroup, state: State, prior: Distribution) -> GroupOutput: ...


@dataclass(frozen=True)
class FromPosterior:
    """z ~ q(z | x, z above), from noise (B, *posterior_noise_shape) per group: training, likelihood, reconstruction."""

    features: Sequence[Any]
    noise: Noise

    def __call__(self, index: int, group: LatentGroup, state: State, prior: Distribution) -> GroupOutput:
        posterior = group.posterior(state, self.features[index], prior)
        noise = self.noise[index]
        z, log_q = posterior.sample_and_log_prob(noise)
        log_p = prior.log_prob(z, noise)
        return GroupOutput(z, prior, posterior, kl_divergence(posterior, prior, log_q, log_p), log_q, log_p)


@dataclass(frozen=True)
class FromNoise:
    """z ~ p(z | z above), from noise (B, *noise_shape) per group, at a temperature for all groups or one per group."""

    noise: Noise
    temperature: float | Sequence[float] = 1.0

    def __call__(self, index: int, group: LatentGroup, state: State, prior: Distribution) -> GroupOutput:
        temperature = self.temperature if isinstance(self.temperature, int | float) else self.temperature[index]
        return GroupOutput(prior.sample(self.noise[index], temperature), prior)


@dataclass(frozen=True)
class PerGroup:
    """One source per group: for example the first groups from an image, the others from the prior."""

    sources: Sequence[LatentSource]

    def __call__(self, index: int, group: LatentGroup, state: State, prior: Distribution) -> GroupOutput:
        return self.sources[index](index, group, state, prior)


# ----------------------------------------------------------------------------------------------------- the model


class HierarchicalVAE(nn.Module):
    """A hierarchical VAE. A family overrides bottom_up, initial_state, decode and, if needed, the hooks below.

    config: the config of the model. levels, groups: top first. likelihood: from the decoder's output to p(x | z).
    padding: pixels that the network adds to each side of an image. pretraining_epochs: first epochs of a training,
    whose loss is `pretraining_kl` alone.
    """

    padding = 0
    pretraining_epochs = 0
    groups: Any  # nn.ModuleList of LatentGroup; set by the family

    def __init__(self, config: ModelConfig, levels: Sequence[Level], likelihood: Likelihood) -> None:
        super().__init__()
        self.config = config
        self.levels = tuple(levels)
        self.likelihood = likelihood

    def bottom_up(self, images: Tensor) -> list[Any]:
        """Map images (B, C, H, W) in [0, 1] to the features of every latent group, top group first."""
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> State:
        """Return the state at the top, before any z."""
        raise NotImplementedError

    def decode(self, state: State, channels: Sequence[int] | None = None) -> Tensor:
        """Return the likelihood's parameters (B, P, H, W) from the last state.

        channels: compute only these; the other channels are NaN.
        """
        raise NotImplementedError

    # Hooks with a default that suits most families.

    def calibrate(self, images_u8: Tensor) -> None:
        """Fill buffers that depend on the data, from all training images, uint8 (N, C, S, S), once before training."""

    def pretraining_kl(self, images: Tensor, noise: Noise) -> Tensor:
        """Return the KL, (B,), in nats, that the `pretraining_epochs` train. images, noise: as in `forward`."""
        raise NotImplementedError

    def regularization_terms(self) -> dict[str, nn.Module]:
        """Return modules by name; training may add their outputs, scalars, to the loss.

        `forward(slice)` returns the sum of a slice of a module's parts, so that processes can share the parts. A buffer
        belongs to the part of its place among the buffers.
        """
        return {}

    def weights_computed_once(self) -> AbstractContextManager[None]:
        """Compute weights that are functions of parameters once, for forward pass, regularization and gradient.

        Training wraps each of them in the context; the parameters do not change within.
        """
        return nullcontext()

    def recompute_activations(self, recompute: bool) -> None:
        """Compute activations again in the backward pass (activation checkpointing), in families that support it."""

    # What every family has.

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def scales(self) -> tuple[Level, ...]:
        """The levels that are scales of the hierarchy, top first: those without a name."""
        return tuple(level for level in self.levels if not level.name)

    @property
    def groups_above_scales(self) -> int:
        """The number of first latent groups whose levels stand above the scales."""
        return sum(level.groups for level in self.levels if level.name)

    @property
    def noise_shapes(self) -> list[tuple[int, ...]]:
        """Shape of every group's noise in a pass from the prior, without the batch, top group first."""
        return [group.noise_shape for group in self.groups]

    def no_noise(self, batch_size: int, *, posterior: bool = False) -> Noise:
        """Return zeros as the noise for a pass from the prior, or for a posterior pass.

        Every z is then the center of its distribution.
        """
        shapes = [group.posterior_noise_shape for group in self.groups] if posterior else self.noise_shapes
        return [torch.zeros(batch_size, *shape, device=self.device) for shape in shapes]

    def draw_noise(
        self, batch_size: int, generator: torch.Generator | None = None, *, posterior: bool = False
    ) -> Noise:
        """Draw standard normal noise for a pass from the prior, or for a posterior pass, group by group from the top.

        The draws are made on the generator's device, so that a CPU generator gives the same numbers on any device.
        """
        return [standard_normal(like, generator) for like in self.no_noise(batch_size, posterior=posterior)]

    def top_down(
        self,
        source: LatentSource,
        batch_size: int | None = None,
        *,
        start: DecoderState | None = None,
        return_states: bool = False,
        mean_only: bool = False,
    ) -> TopDownOutput:
        """Run the top-down pass from the initial state, or from `start`, to the likelihood's parameters.

        source: where the z of each group comes from. batch_size: not needed with `start`.
        return_states: return the state before every group. mean_only: compute only the output channels that the mean
        and the most likely image need; the other channels are NaN, so log_prob and sample are not valid.
        """
        if start is None:
            if batch_size is None:
                raise ValueError("top_down needs a batch_size or a start")
            start = self._before(0, self.initial_state(batch_size))
        outputs, states = {}, {}
        for index in range(start.group, len(self.groups)):
            if return_states:
                states[index] = start
            group = self.groups[index]
            outputs[index] = source(index, group, start.state, start.prior)
            state = group.merge(start.state, outputs[index].z)
            if index + 1 < len(self.groups):
                start = self._before(index + 1, state)
        parameters = self.decode(state, self.likelihood.mean_channels if mean_only else None)  # (B, P, H, W)
        return TopDownOutput(parameters, self.likelihood(parameters), outputs, states)

    def _before(self, index: int, state: State) -> DecoderState:
        return DecoderState(index, *self.groups[index].prior(state))

    def forward(self, images: Tensor, noise: Noise) -> TopDownOutput:
        """Run the posterior pass of training. images: (B, C, H, W) in [0, 1]. noise: from `draw_noise`."""
        return self.top_down(FromPosterior(self.bottom_up(images), noise), len(images))
