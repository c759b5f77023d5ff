"""HierarchicalVAE: bottom-up features, the one top-down pass, and the ways of choosing z.

A family of models gives this class its parts: an encoder, a module per latent group, and an output. The walk from
the learned constant at the top to the pixels is the same for all of them and for every use; what differs is only how
the z of each group is chosen, which is a chooser's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvae.models.distributions import DiagonalNormal, standard_normal
from nvae.models.likelihoods import Likelihood, PixelDistribution
from nvae.models.nvae.cells import CellStack
from nvae.schema import ModelConfig


@dataclass(frozen=True)
class Level:
    """One scale of the hierarchy: how many groups of latents live there, and what they look like."""

    groups: int
    resolution: int  # pixels per side
    encoder_channels: int
    decoder_channels: int
    latent_size: int

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.latent_size, self.resolution, self.resolution


class LatentGroup(nn.Module):
    """What a family defines for one group. `state` is what comes down from the groups above, usually one tensor."""

    level: Level
    same_flow: bool  # whether the posterior's flow, if any, follows the prior too
    temperature_scales_min_sigma: bool  # whether a temperature scales the least sigma too

    @property
    def heads(self) -> list[nn.Module]:
        """The modules that give the parameters of prior and posterior."""
        return []

    def descend(self, state: Tensor) -> Tensor:
        """The cells between the group above and this one."""
        raise NotImplementedError

    def prior(self, state: Tensor) -> Tensor:
        """Raw parameters (B, 2L, H, W) of p(z | z above)."""
        raise NotImplementedError

    def posterior(self, state: Tensor, features: Tensor, raw_prior: Tensor) -> Tensor:
        """Raw parameters (B, 2L, H, W) of q(z | x, z above)."""
        raise NotImplementedError

    def posterior_flow(self, z: Tensor) -> Tensor:
        """The invertible map from a draw of the posterior's Normal to z; its log-determinant is 0."""
        raise NotImplementedError

    def prior_flow(self, z: Tensor) -> Tensor:
        """The same for the prior."""
        raise NotImplementedError

    def join(self, state: Tensor, z: Tensor) -> Tensor:
        """The state after this group."""
        raise NotImplementedError

    def normal(self, raw: Tensor, temperature: float = 1.0) -> DiagonalNormal:
        """The Normal that raw parameters stand for."""
        return DiagonalNormal.from_raw(raw, temperature, on_floor=self.temperature_scales_min_sigma)


@dataclass(frozen=True)
class GroupResult:
    """What happened at one group. `posterior` and `kl` are there where an image was encoded."""

    z: Tensor  # (B, L, H, W)
    prior: DiagonalNormal
    posterior: DiagonalNormal | None = None
    kl: Tensor | None = None  # (B,), nats
    log_q: Tensor | None = None  # (B,), nats, at z
    log_p: Tensor | None = None  # (B,), nats, at z


@dataclass(frozen=True)
class Pass:
    """Result of a top-down pass. A pass that started at group k has no results for the groups before k."""

    output: Tensor  # (B, P, H, W), the parameters of `pixels`
    pixels: PixelDistribution
    groups: dict[int, GroupResult]
    starts: dict[int, Start] = field(default_factory=dict)  # right before each group's choice, if asked for

    @property
    def kl(self) -> Tensor:
        """(B, G): the KL of every group, top group first, in nats."""
        return torch.stack([group.kl for group in self.groups.values()], dim=1)


@dataclass(frozen=True)
class Start:
    """Where a pass begins: at the choice of `group`'s z, with what an earlier pass had come to until then."""

    group: int
    state: Tensor  # what came down to the group, (B, C, H, W)
    raw_prior: Tensor  # (B, 2L, H, W)

    def repeated(self, count: int) -> Start:
        """For `count` images, from that of one."""
        return Start(self.group, self.state.expand(count, -1, -1, -1), self.raw_prior.expand(count, -1, -1, -1))


# --------------------------------------------------------------------------------------------- choosing z


class LatentSource(Protocol):
    """Chooses the z of one group, given the state that has come down to it and the prior's raw parameters."""

    def __call__(self, index: int, group: LatentGroup, state: Tensor, raw_prior: Tensor) -> GroupResult: ...


def _sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def group_value(value: float | Sequence[float], index: int) -> float:
    """A group's number, where there is one number for all groups or one per group."""
    return value if isinstance(value, int | float) else value[index]


@dataclass(frozen=True)
class FromPosterior:
    """z ~ q(z | x, z above): training, likelihood, reconstruction. Noise is given per group, or drawn.

    The KL is that of the two Normals in closed form where the same flow follows both; where a flow follows only the
    posterior it is the sample's log q - log p.
    """

    features: Sequence[Tensor]
    generator: torch.Generator | None = None
    noise: Sequence[Tensor] | None = None
    temperature: float = 1.0

    def __call__(self, index: int, group: LatentGroup, state: Tensor, raw_prior: Tensor) -> GroupResult:
        prior = group.normal(raw_prior)
        raw_posterior = group.posterior(state, self.features[index], raw_prior)
        posterior = group.normal(raw_posterior, self.temperature)
        eps = standard_normal(posterior.mu, self.generator) if self.noise is None else self.noise[index]
        z0 = posterior.rsample(eps)
        z = group.posterior_flow(z0)
        log_q = _sum(posterior.log_prob(z0))
        if group.same_flow:
            log_p = _sum(prior.log_prob(z0))
            kl = _sum(posterior.kl(prior))
        else:
            log_p = _sum(prior.log_prob(z))
            kl = log_q - log_p
        return GroupResult(z, prior, posterior, kl, log_q, log_p)


@dataclass(frozen=True)
class FromPrior:
    """z ~ p(z | z above) at a temperature, one number or one per group: sampling."""

    temperature: float | Sequence[float] = 1.0
    generator: torch.Generator | None = None

    def __call__(self, index: int, group: LatentGroup, state: Tensor, raw_prior: Tensor) -> GroupResult:
        prior = group.normal(raw_prior, group_value(self.temperature, index))
        eps = standard_normal(prior.mu, self.generator)
        return GroupResult(group.prior_flow(prior.rsample(eps)), prior)


@dataclass(frozen=True)
class FromNoise:
    """z from given noise (one (B, L, H, W) per group) at a temperature: exploring, reproducing a sample."""

    noise: Sequence[Tensor]
    temperature: float | Sequence[float] = 1.0

    def __call__(self, index: int, group: LatentGroup, state: Tensor, raw_prior: Tensor) -> GroupResult:
        prior = group.normal(raw_prior, group_value(self.temperature, index))
        return GroupResult(group.prior_flow(prior.rsample(self.noise[index])), prior)


@dataclass(frozen=True)
class FromLatents:
    """The z themselves are given: interpolation, decoding."""

    latents: Sequence[Tensor]

    def __call__(self, index: int, group: LatentGroup, state: Tensor, raw_prior: Tensor) -> GroupResult:
        return GroupResult(self.latents[index], group.normal(raw_prior))


@dataclass(frozen=True)
class PerGroup:
    """A chooser for each group: the first k groups of one image, the rest free."""

    choosers: Sequence[LatentSource]

    def __call__(self, index: int, group: LatentGroup, state: Tensor, raw_prior: Tensor) -> GroupResult:
        return self.choosers[index](index, group, state, raw_prior)


# --------------------------------------------------------------------------------------------- the model


class HierarchicalVAE(nn.Module):
    """A hierarchical VAE of any family.

    encoder: images (B, C, H, W) in [0, 1], with their padding, to one feature map per latent group, top group first.
    groups: the latent groups, top group first.
    output: the last state to the likelihood's parameters (B, P, H, W), padding included.
    constant: the learned state at the top, (1, C, h, w).
    kl_per_group: nats per validation image of every group, top group first, once a training run has measured it.
    """

    kl_per_group: list[float] | None = None

    def __init__(
        self,
        config: ModelConfig,
        levels: Sequence[Level],
        encoder: nn.Module,
        constant: Tensor,
        groups: Sequence[LatentGroup],
        output: nn.Module,
        likelihood: Likelihood,
    ) -> None:
        super().__init__()
        self.config = config
        self.levels = tuple(levels)
        self.likelihood = likelihood
        self.encoder = encoder
        self.constant = nn.Parameter(constant)
        self.groups = nn.ModuleList(groups)
        self.output = output

    @property
    def noise_shapes(self) -> list[tuple[int, int, int]]:
        """Shape of the noise of every group without the batch dimension, top group first."""
        return [level.latent_shape for level in self.levels for _ in range(level.groups)]

    def no_noise(self, batch_size: int) -> list[Tensor]:
        """Zeros in place of noise, with which every z is its Normal's mean."""
        return [self.constant.new_zeros(batch_size, *shape) for shape in self.noise_shapes]

    def recompute_activations(self, recompute: bool) -> None:
        """Activation checkpointing: keep only what goes into each cell and compute the rest again for the gradient."""
        for module in self.modules():
            if isinstance(module, CellStack):
                module.recompute = recompute

    def bottom_up(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) in [0, 1] to the features of every latent group, top group first."""
        padding = self.config.padding
        return self.encoder(functional.pad(images, 4 * (padding,)) if padding else images)

    def top_down(
        self,
        choose: LatentSource,
        batch_size: int | None = None,
        *,
        start: Start | None = None,
        return_states: bool = False,
        mean_only: bool = False,
    ) -> Pass:
        """Walk from the top, or from `start`, to the pixels.

        choose: the way of choosing z.
        batch_size: how many images at once; not needed with `start`, which knows it.
        mean_only: do not compute what the mean and the most likely image do not need; all else of the pixels is NaN.
        return_states: return what stands before the choice of every z, from where a later pass can start.
        """
        if start is None:
            if batch_size is None:
                raise ValueError("top_down needs a batch_size or a start")
            start = self._start_of(0, self.constant.expand(batch_size, -1, -1, -1))
        results, starts = {}, {}
        for index in range(start.group, len(self.groups)):
            if return_states:
                starts[index] = start
            group = self.groups[index]
            result = results[index] = choose(index, group, start.state, start.raw_prior)
            state = group.join(start.state, result.z.to(start.state.dtype))
            if index + 1 < len(self.groups):
                start = self._start_of(index + 1, state)
        output = self.output(state, self.likelihood.mean_channels) if mean_only else self.output(state)  # (B, P, H, W)
        padding = self.config.padding
        if padding:  # what the network says about the margin is not looked at
            output = output[:, :, padding:-padding, padding:-padding]
        return Pass(output, self.likelihood(output), results, starts)

    def _start_of(self, index: int, state: Tensor) -> Start:
        """A group's, from the state after the group above."""
        group = self.groups[index]
        state = group.descend(state)
        return Start(index, state, group.prior(state))

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Pass:
        """The posterior pass of training: encode images (B, C, H, W) in [0, 1], walk down with z ~ q."""
        return self.top_down(FromPosterior(self.bottom_up(images), generator), len(images))
