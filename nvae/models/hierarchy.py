"""HierarchicalVAE: the base class of every family, and the one top-down pass.

A family gives this class an encoder, one module per latent group, and a decoder of the last state. The pass from the
initial state to the likelihood's parameters is the same for every family and every use. Training, sampling, exploration
and interpolation differ only in where the z of each group comes from: a `LatentSource`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nvae.models.distributions import Distribution, Noise, draw_noise, kl_divergence, map_tensors
from nvae.models.likelihoods import Likelihood, PixelDistribution
from nvae.schema import ModelConfig

State = Tensor | tuple[Tensor, ...]  # batch first


@dataclass(frozen=True)
class Level:
    """One scale of the hierarchy: the number of latent groups and their shape."""

    groups: int
    resolution: int  # pixels per side
    encoder_channels: int
    decoder_channels: int
    latent_size: int

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.latent_size, self.resolution, self.resolution


class LatentGroup(nn.Module):
    """What a family defines for one latent group. `state` is what the groups above pass down."""

    level: Level

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape, without the batch, of the noise that the prior turns into z."""
        return self.level.latent_shape

    @property
    def posterior_noise_shape(self) -> tuple[int, ...]:
        """Shape, without the batch, of the noise of a posterior pass: for z, and for a prior that is a bound."""
        return self.noise_shape

    def prior(self, state: State) -> tuple[State, Distribution]:
        """p(z | z above), and the state that posterior and merge continue with."""
        raise NotImplementedError

    def posterior(self, state: State, features: Any, prior: Distribution) -> Distribution:
        """q(z | x, z above); features: the group's part of `bottom_up`."""
        raise NotImplementedError

    def merge(self, state: State, z: Tensor) -> State:
        """The state after this group."""
        raise NotImplementedError


@dataclass(frozen=True)
class GroupOutput:
    """The results of one group. posterior, kl, log_q and log_p exist where an image was encoded."""

    z: Tensor
    prior: Distribution
    posterior: Distribution | None = None
    kl: Tensor | None = None  # (B,), nats
    log_q: Tensor | None = None  # (B,), nats, at z
    log_p: Tensor | None = None  # (B,), nats, at z


@dataclass(frozen=True)
class DecoderState:
    """The state of a pass right before a group's z is sampled; a later pass can start here."""

    group: int
    state: State
    prior: Distribution

    def repeated(self, count: int) -> DecoderState:
        """The same state for `count` images, from a pass with one image."""

        def expand(x: Tensor) -> Tensor:
            return x.expand(count, *x.shape[1:])

        return DecoderState(self.group, map_tensors(self.state, expand), map_tensors(self.prior, expand))


@dataclass(frozen=True)
class TopDownOutput:
    """Result of a top-down pass. A pass that started at group k has no results for the groups before k."""

    parameters: Tensor  # (B, P, H, W), of p(x | z)
    px_z: PixelDistribution
    groups: dict[int, GroupOutput]
    states: dict[int, DecoderState] = field(default_factory=dict)  # before each group, if asked for

    @property
    def kl(self) -> Tensor:
        """(B, G): the KL of every group, top group first, in nats."""
        return torch.stack([group.kl for group in self.groups.values()], dim=1)


# ------------------------------------------------------------------------------------------- where z comes from


class LatentSource(Protocol):
    """Gives the z of one group, from the state that reached the group and the group's prior."""

    def __call__(self, index: int, group: LatentGroup, state: State, prior: Distribution) -> GroupOutput: ...


def group_value(value: float | Sequence[float], index: int) -> float:
    """The value of one group, where there is one value for all groups or one per group."""
    return value if isinstance(value, int | float) else value[index]


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
        return GroupOutput(prior.sample(self.noise[index], group_value(self.temperature, index)), prior)


@dataclass(frozen=True)
class FromLatents:
    """The z of every group, given: decoding, interpolation."""

    latents: Sequence[Tensor]

    def __call__(self, index: int, group: LatentGroup, state: State, prior: Distribution) -> GroupOutput:
        return GroupOutput(self.latents[index], prior)


@dataclass(frozen=True)
class PerGroup:
    """One source per group: for example the first groups from an image, the others from the prior."""

    sources: Sequence[LatentSource]

    def __call__(self, index: int, group: LatentGroup, state: State, prior: Distribution) -> GroupOutput:
        return self.sources[index](index, group, state, prior)


# ----------------------------------------------------------------------------------------------------- the model


class HierarchicalVAE(nn.Module):
    """A hierarchical VAE. A family overrides bottom_up, initial_state and decode, and the hooks below that it needs.

    config: what built the model. levels: top first. groups: top first. likelihood: what the decoder's output means.
    padding: pixels by which the latents' area exceeds the image on each side.
    """

    padding = 0

    def __init__(self, config: ModelConfig, levels: Sequence[Level], likelihood: Likelihood) -> None:
        super().__init__()
        self.config = config
        self.levels = tuple(levels)
        self.likelihood = likelihood
        self.groups: nn.ModuleList  # of LatentGroup; set by the family

    def bottom_up(self, images: Tensor) -> list[Any]:
        """Images (B, C, H, W) in [0, 1] to the features of every latent group, top group first."""
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> State:
        """The state at the top, before any z."""
        raise NotImplementedError

    def decode(self, state: State, channels: Sequence[int] | None = None) -> Tensor:
        """The likelihood's parameters (B, P, H, W) from the last state.

        channels: compute only these; the other channels are NaN.
        """
        raise NotImplementedError

    # Hooks with a default that suits most families.

    def calibrate(self, images_u8: Tensor) -> None:
        """Fill buffers that depend on the data, from training images (N, C, S, S); called once, before training."""

    def regularization_terms(self) -> dict[str, nn.Module]:
        """Modules whose forward() is a scalar that training may add to the loss, by name."""
        return {}

    def recompute_activations(self, recompute: bool) -> None:
        """Activation checkpointing, for a family that has it: compute activations again in the backward pass."""

    # What every family has.

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def noise_shapes(self) -> list[tuple[int, ...]]:
        """Shape of every group's noise in a pass from the prior, without the batch, top group first."""
        return [group.noise_shape for group in self.groups]

    @property
    def posterior_noise_shapes(self) -> list[tuple[int, ...]]:
        """Shape of every group's noise in a posterior pass, without the batch, top group first."""
        return [group.posterior_noise_shape for group in self.groups]

    def draw_noise(self, batch_size: int, generator: torch.Generator | None = None) -> Noise:
        """Noise for a pass from the prior, on the model's device, drawn on the generator's."""
        return draw_noise(self.noise_shapes, batch_size, generator, self.device)

    def draw_posterior_noise(self, batch_size: int, generator: torch.Generator | None = None) -> Noise:
        """Noise for a posterior pass, on the model's device, drawn on the generator's."""
        return draw_noise(self.posterior_noise_shapes, batch_size, generator, self.device)

    def no_noise(self, batch_size: int) -> Noise:
        """Zeros in place of noise for a pass from the prior: every z is the center of its distribution."""
        return [torch.zeros(batch_size, *shape, device=self.device) for shape in self.noise_shapes]

    def no_posterior_noise(self, batch_size: int) -> Noise:
        """Zeros in place of noise for a posterior pass."""
        return [torch.zeros(batch_size, *shape, device=self.device) for shape in self.posterior_noise_shapes]

    def top_down(
        self,
        source: LatentSource,
        batch_size: int | None = None,
        *,
        start: DecoderState | None = None,
        return_states: bool = False,
        mean_only: bool = False,
    ) -> TopDownOutput:
        """Pass from the initial state, or from `start`, to the likelihood's parameters.

        source: where the z of each group comes from. batch_size: not needed with `start`.
        return_states: keep the state before every group. mean_only: compute only the channels of the output that the
        mean and the most likely image need; the others are NaN, so log_prob and sample are not valid.
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
        """The posterior pass of training: encode images (B, C, H, W) in [0, 1], z ~ q from noise drawn outside."""
        return self.top_down(FromPosterior(self.bottom_up(images), noise), len(images))
