"""Estimate bounds on log p(x): the ELBO, and the importance-weighted bound."""

from __future__ import annotations

import math
from functools import reduce
from operator import itemgetter
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from nvae.data.images import dequantize, to_float
from nvae.evaluation.active_units import ActiveUnits
from nvae.inference.arguments import check_choice, check_count, check_images_u8, check_seeds
from nvae.models.distributions import Noise, map_tensors
from nvae.models.folding import for_inference
from nvae.models.hierarchy import DecoderState, FromPosterior, GroupOutput, HierarchicalVAE, TopDownOutput
from nvae.objective import elbo_terms
from nvae.schema.choices import Estimator
from nvae.system.errors import InvalidValueError
from nvae.system.memory_maps import release_pages
from nvae.system.progress import Progress, batches, track
from nvae.system.ranks import Ranks
from nvae.system.seeds import seeded


class Estimate(NamedTuple):
    """A mean over images and its standard error; the error of a single image is NaN."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """Estimate from one value per image, (N,)."""
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(values.mean().item(), error)


class Evaluation(NamedTuple):
    """An evaluation on a set of images. Nats are per image; groups are ordered top first."""

    images: int
    samples: int  # posterior samples per image
    estimator: Estimator  # of log_likelihood
    is_normalized: bool  # whether the probabilities of all images add up to 1 under p(x | z)
    elbo: Estimate  # nats
    log_likelihood: Estimate  # nats: the importance-weighted bound on log p(x); of one sample an estimate of the ELBO
    reconstruction: float  # nats: E log p(x | z)
    kl_per_group: list[float]  # nats
    active_units_per_group: list[int] | None  # None if not counted
    units_per_group: list[int]
    elbo_bits: Estimate  # bits per dimension of the negative bound: lower is better
    log_likelihood_bits: Estimate

    @property
    def is_bound(self) -> bool:
        """Whether log_likelihood is a lower bound of log p(x), in expectation."""
        return self.is_normalized and self.estimator == "importance_weighted"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file, with None for numbers that are not finite."""
        return {key: plain(value) for key, value in self._asdict().items()} | {"is_bound": self.is_bound}


class Plan(NamedTuple):
    """The samples of an evaluation."""

    estimator: Estimator
    samples: int  # per image and draw of the top groups
    samples_per_pass: int  # per image, in one top-down pass
    outer_samples: int  # draws of the top groups per image


def plain(value: Any) -> Any:
    """Return an estimate, a list, or a number as plain values for a JSON file, with None for what is not finite."""
    if isinstance(value, Estimate):
        return {key: plain(part) for key, part in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@torch.no_grad()
def evaluate(
    model: HierarchicalVAE,
    images_u8: Tensor,
    batch_size: int = 64,
    samples: int = 1,
    seed: int = 0,
    targets_u8: Tensor | None = None,
    count_active: bool | int = True,
    progress: Progress = False,
    estimator: Estimator = "importance_weighted",
    outer_samples: int = 1,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Estimate the bounds on log p(x) of images, with the batch-norm statistics of training.

    images_u8: uint8 (N, C, S, S), for the encoder. targets_u8: what p(x | z) should give, uint8 (N, C, S, S); for
    example binary images where the encoder gets grayscale ones (default: images_u8).
    samples: draws from the posterior per image. The ELBO averages log p(x | z) - KL over the draws. The
    importance-weighted bound is the mean over images of log mean_k p(x, z_k) / q(z_k | x) (Burda et al. 2016), which
    rises to log p(x) with the number of samples.
    batch_size: samples per top-down pass, which bounds the memory. The bottom-up pass is computed once per image. The
    draws depend on the seed, the batch size and the type of device.
    estimator: "analytic_kl" puts the KL in closed form into the weights instead of log p(z) - log q(z | x) at the
    sample; the result is not a bound (`log_analytic_weight`).
    outer_samples: draws per image of the groups whose prior gives log p(z) as a bound in expectation alone. Each draw
    has `samples` draws of the groups below and a bound of its own, with log p(z) - log q(z | x) of the top groups
    outside of the logarithm (docs/likelihood.md); the result is the mean. Other models need one.
    count_active: count the active units too, of all images or of about the first N, which takes one more top-down pass
    per image that counts.
    ranks: processes that share the images, each with the same model and arguments; every rank gets the same result.
    Raises InvalidValueError.
    """
    targets_u8 = images_u8 if targets_u8 is None else targets_u8
    check_images_u8(model, images_u8)
    check_images_u8(model, targets_u8, "targets_u8")
    if len(targets_u8) != len(images_u8):
        raise InvalidValueError(
            "targets_u8", f"{len(targets_u8)} images", f"one for each of the {len(images_u8)} images"
        )
    check_count("batch_size", batch_size)
    check_count("samples", samples)
    check_count("outer_samples", outer_samples)
    check_choice("estimator", estimator, get_args(Estimator))
    check_seeds([seed])
    ranks = ranks or Ranks()
    model = for_inference(model)
    images_to_count = len(images_u8) if count_active is True else int(count_active)
    active_units = ActiveUnits(model) if images_to_count else None
    images_per_pass = max(1, batch_size // samples)
    samples_per_pass = max(1, batch_size // images_per_pass)
    sampling = Plan(estimator, samples, samples_per_pass, outer_samples)
    all_batches = list(batches(len(images_u8), batch_size))
    plan = [  # a batch of images shares a bottom-up pass and a random stream; a part of them shares top-down passes
        (batch, part)
        for batch in all_batches[ranks.share(0, len(all_batches))]
        for part in batches(batch.stop - batch.start, images_per_pass)
    ]
    bounds = []
    for batch, part in track(plan, "evaluating", progress):
        if part.start == 0:
            images = to_float(images_u8[batch], model.device, model.config.input_bits)
            targets = to_float(targets_u8[batch], model.device, model.config.pixel_bits)
            if model.config.dataset.dequantize:
                noise = seeded(seed, "dequantization in validation", batch.start, model.device)
                targets = dequantize(targets, model.config.pixel_bits, noise)
            release_pages()
            features = model.bottom_up(images)
            generator = seeded(seed, "validation", batch.start, model.device)
            if active_units is not None and batch.start < images_to_count:
                active_units.add(features, len(images))
        part_features = [map_tensors(group, itemgetter(part)) for group in features]
        bounds.append(_bounds(model, part_features, targets[part], sampling, generator))
    if active_units is not None:
        active_units.merge(ranks)
    bounds = [part for parts in ranks.gather(bounds) for part in parts]
    elbo, log_likelihood, reconstruction, kl = (torch.cat(values) for values in zip(*bounds, strict=True))

    def in_bits(nats: Tensor) -> Estimate:
        bits = model.likelihood.bits_per_dimension(-nats, targets_u8[0].numel())
        assert isinstance(bits, Tensor)
        return Estimate.of(bits)

    return Evaluation(
        images=len(images_u8),
        samples=samples,
        estimator=estimator,
        is_normalized=model.likelihood.is_normalized,
        elbo=Estimate.of(elbo),
        log_likelihood=Estimate.of(log_likelihood),
        reconstruction=reconstruction.mean().item(),
        kl_per_group=kl.mean(0).tolist(),
        active_units_per_group=None if active_units is None else active_units.counts(),
        units_per_group=[math.prod(group.level.latent_shape) for group in model.groups],
        elbo_bits=in_bits(elbo),
        log_likelihood_bits=in_bits(log_likelihood),
    )


class Bounds(NamedTuple):
    """The bounds of n images and the terms of the ELBO, nats, float64 on the CPU."""

    elbo: Tensor  # (n,)
    log_likelihood: Tensor  # (n,): importance-weighted
    reconstruction: Tensor  # (n,)
    kl: Tensor  # (n, G)


def log_importance_weight(output: TopDownOutput, log_likelihood: Tensor) -> Tensor:
    """Return log p(x, z) - log q(z | x) of a posterior pass, (B,), from its log p(x | z), (B,). Float64, on the CPU."""
    return log_likelihood.cpu().double() + sum(map(_log_ratio, output.groups.values()))


def _log_ratio(group: GroupOutput) -> Tensor:
    """Return log p(z) - log q(z | x) of a group in a posterior pass, (B,). Float64, on the CPU."""
    assert group.log_p is not None and group.log_q is not None
    return group.log_p.cpu().double() - group.log_q.cpu().double()


def groups_above_bounds(model: HierarchicalVAE) -> int:
    """Return how many groups, from the top, are drawn once for all importance samples.

    They end with the last group whose prior gives a bound of log p(z) in expectation alone. The noise of such a bound
    must stay outside the logarithm of the mean: inside, the mean of exp(noise) is above 1, and the result is no bound.
    """
    return max((index + 1 for index, group in enumerate(model.groups) if group.info.bound), default=0)


def _bounds(
    model: HierarchicalVAE, features: list[Any], targets: Tensor, plan: Plan, generator: torch.Generator
) -> Bounds:
    """Return the bounds of n images from features and targets, the means over `plan.outer_samples` draws of the top."""
    draws = [_one_bound(model, features, targets, plan, generator) for _ in range(plan.outer_samples)]
    return Bounds(*(sum(values) / len(draws) for values in zip(*draws, strict=True)))


def _one_bound(
    model: HierarchicalVAE, features: list[Any], targets: Tensor, plan: Plan, generator: torch.Generator
) -> Bounds:
    outer, samples = groups_above_bounds(model) if plan.estimator == "importance_weighted" else 0, plan.samples
    if outer == len(model.groups):
        samples = 1  # nothing is left to draw more often
    if samples == 1:
        outer = 0  # inside and outside of the logarithm are the same
    start, outer_weight = None, torch.zeros(len(targets), dtype=torch.float64)
    outer_kl = torch.zeros(len(targets), 0, dtype=torch.float64)
    if outer:
        noise = model.draw_noise(len(targets), generator, posterior=True)
        output = model.top_down(FromPosterior(features, noise), len(targets), return_states=True)
        start = output.states[outer]
        for index in range(outer):
            outer_weight = outer_weight + _log_ratio(output.groups[index])
        outer_kl = output.kl[:, :outer].cpu().double()
    draws = []
    for part in batches(samples, plan.samples_per_pass):
        noise = model.draw_noise((part.stop - part.start) * len(targets), generator, posterior=True)
        draws.append(importance_draw(model, features, targets, noise, plan.estimator, start))
    log_weights = torch.cat([draw.log_weight for draw in draws], dim=1)  # (n, K)
    kl = torch.cat([outer_kl, reduce(torch.add, [draw.kl for draw in draws]) / samples], dim=1)  # (n, G)
    reconstruction = reduce(torch.add, [draw.reconstruction for draw in draws]) / samples  # (n,)
    log_likelihood = outer_weight + torch.logsumexp(log_weights, 1) - math.log(samples)
    return Bounds(reconstruction - kl.sum(1), log_likelihood, reconstruction, kl)


class Draw(NamedTuple):
    """k samples for each of n images, float64 on the CPU; reconstruction and kl are sums over the samples."""

    log_weight: Tensor  # (n, k): of the estimator
    reconstruction: Tensor  # (n,): log p(x | z)
    kl: Tensor  # (n, groups of the pass)


def importance_draw(
    model: HierarchicalVAE,
    features: list[Any],
    targets: Tensor,
    noise: Noise,
    estimator: Estimator = "importance_weighted",
    start: DecoderState | None = None,
) -> Draw:
    """Run one top-down pass with k draws for each of n images, side by side, from `start` on.

    features, targets, start: of n images. noise: one (n k, *posterior_noise_shape) per group, image by image.
    """
    count = len(noise[-1])
    samples = count // len(targets)

    def repeat(x: Tensor) -> Tensor:  # (n, ...) to (n * samples, ...), channels last as before
        channel = min(1, x.dim() - 1)
        return x.movedim(channel, -1).repeat_interleave(samples, 0).movedim(-1, channel) if samples > 1 else x

    def per_image(x: Tensor) -> Tensor:
        return x.cpu().double().unflatten(0, (len(targets), samples))

    source = FromPosterior([map_tensors(group, repeat) for group in features], noise)
    output = model.top_down(source, count, start=map_tensors(start, repeat))
    terms = elbo_terms(output, repeat(targets))
    if estimator == "importance_weighted":
        log_weight = log_importance_weight(output, terms.log_likelihood)
    else:
        log_weight = log_analytic_weight(model, output, terms.log_likelihood, noise)
    return Draw(per_image(log_weight), per_image(terms.log_likelihood).sum(1), per_image(terms.kl).sum(1))


def log_analytic_weight(model: HierarchicalVAE, output: TopDownOutput, log_likelihood: Tensor, noise: Noise) -> Tensor:
    """Return log p(x | z) - KL of a posterior pass, (B,): the "weight" of Kuzina and Tomczak's program (2024).

    The KL is in closed form where there is one. The mean of its exponential estimates no bound on log p(x): the KL does
    not vary with z as log q(z | x) - log p(z) does. Float64, on the CPU.
    """
    weight = log_likelihood.cpu().double()
    for position, (index, group) in enumerate(output.groups.items()):
        kl = output.kl[:, position]
        if bound := model.groups[index].info.bound:
            kl = group.log_q - bound.published_log_prob(group.z, noise[index])
        weight = weight - kl.cpu().double()
    return weight
