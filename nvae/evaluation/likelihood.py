"""How likely a model finds images: the evidence lower bound, and the importance-weighted one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from nvae.data.images import to_float
from nvae.models.hierarchy import FromPosterior, HierarchicalVAE, TopDownOutput
from nvae.objective import elbo_terms
from nvae.seeds import seeded

ACTIVE_VARIANCE = 0.01


class Estimate(NamedTuple):
    """A mean over images and its standard error."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """From one value per image; the error of a single image is not known."""
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(values.mean().item(), error)


def _plain(value: Any) -> Any:
    """For a JSON file, which knows no NaN."""
    if isinstance(value, Estimate):
        return {key: _plain(part) for key, part in value._asdict().items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Evaluation(NamedTuple):
    """What a set of images says about a model. Nats are per image; groups are ordered top first."""

    images: int
    samples: int  # draws from the posterior per image
    elbo: Estimate  # nats
    log_likelihood: Estimate  # nats: the importance-weighted bound on log p(x); with one sample an estimate of the ELBO
    reconstruction: float  # nats: E log p(x | z)
    kl_per_group: list[float]  # nats
    active_units_per_group: list[int] | None  # None if not counted
    units_per_group: list[int]
    elbo_bits: Estimate  # bits per dimension, of the negative bound: less is better
    log_likelihood_bits: Estimate

    def plain(self) -> dict[str, Any]:
        """For a JSON file."""
        return {key: _plain(value) for key, value in self._asdict().items()}


@torch.no_grad()
def evaluate(
    model: HierarchicalVAE,
    pixels: Tensor,
    batch_size: int,
    samples: int = 1,
    seed: int = 0,
    progress: bool = False,
    count_active: bool = True,
) -> Evaluation:
    """The bounds on log p(x) of uint8 pixels (N, C, S, S), with the batch-norm statistics of training.

    The ELBO averages log p(x|z) - KL over the draws. The importance-weighted bound is the mean over images of
    log mean_k p(x, z_k) / q(z_k | x) (Burda et al. 2016), which rises to log p(x) with the number of samples.

    A latent unit is active when its posterior's mean, counted from its prior's and in the prior's standard deviations,
    has a variance of more than 0.01 over images, all latents above it at their posteriors' means; for a standard normal
    prior that is the criterion of Burda et al. It takes one more top-down pass per image: count_active.

    batch_size: how many passes go through the network at once, which bounds the memory. The bottom-up pass is computed
    once per image, whatever the number of its samples. The draws depend on the seed, the batch size and the kind of
    device.
    Returns with the model in the mode it came in.
    """
    device, bits = model.device, model.config.pixel_bits
    training = model.training
    model.eval()
    images_at_once = max(1, batch_size // samples)  # in a top-down pass
    samples_at_once = max(1, min(samples, batch_size // images_at_once))
    elbos, log_likelihoods, reconstructions, kls = [], [], [], []
    done_images, elbo_sum, log_p_sum = 0, 0.0, 0.0  # for the progress bar
    activity = Activity(model) if count_active else None
    with tqdm(total=len(pixels) * samples, unit="sample", disable=None if progress else True, leave=False) as bar:
        for first in range(0, len(pixels), batch_size):
            batch = to_float(pixels[first : first + batch_size], device, bits)
            features = model.bottom_up(batch)  # of as many images as passes go at once
            if activity is not None:
                activity.add(features)
            generator = seeded(seed, "validation", first, device)
            for images, *of_groups in zip(*(x.split(images_at_once) for x in (batch, *features)), strict=True):
                draws = []
                for done in range(0, samples, samples_at_once):
                    draws.append(_draw(model, of_groups, images, min(samples_at_once, samples - done), generator))
                    bar.update(draws[-1].log_weight.numel())
                log_weights = torch.cat([draw.log_weight for draw in draws], dim=1)  # (n, K)
                kl = sum(draw.kl for draw in draws) / samples  # (n, G)
                reconstruction = sum(draw.reconstruction for draw in draws) / samples  # (n,)
                log_likelihoods.append(torch.logsumexp(log_weights, 1) - math.log(samples))
                elbos.append(reconstruction - kl.sum(1))
                reconstructions.append(reconstruction)
                kls.append(kl)
                done_images += len(images)
                elbo_sum += elbos[-1].sum().item()
                log_p_sum += log_likelihoods[-1].sum().item()
                bar.set_postfix_str(f"ELBO {elbo_sum / done_images:.2f}, log p {log_p_sum / done_images:.2f}")
    model.train(training)
    elbo, log_likelihood = torch.cat(elbos), torch.cat(log_likelihoods)

    def in_bits(nats: Tensor) -> Estimate:
        return Estimate.of(model.likelihood.bits_per_dimension(-nats, pixels[0].numel()))

    return Evaluation(
        images=len(pixels),
        samples=samples,
        elbo=Estimate.of(elbo),
        log_likelihood=Estimate.of(log_likelihood),
        reconstruction=torch.cat(reconstructions).mean().item(),
        kl_per_group=torch.cat(kls).mean(0).tolist(),
        active_units_per_group=None if activity is None else activity.active(),
        units_per_group=[math.prod(shape) for shape in model.noise_shapes],
        elbo_bits=in_bits(elbo),
        log_likelihood_bits=in_bits(log_likelihood),
    )


class Draw(NamedTuple):
    """Some samples of each of n images, float64 on the CPU. The last two are sums over the samples."""

    log_weight: Tensor  # (n, k): log p(x, z) - log q(z | x)
    reconstruction: Tensor  # (n,): log p(x | z)
    kl: Tensor  # (n, G)


def log_importance_weight(result: TopDownOutput, log_likelihood: Tensor) -> Tensor:
    """log p(x, z) - log q(z | x) of a posterior pass, (B,), from its log p(x | z), (B,). Float64, on the CPU."""
    ratios = [group.log_p.cpu().double() - group.log_q.cpu().double() for group in result.groups.values()]
    return log_likelihood.cpu().double() + sum(ratios)


def _draw(
    model: HierarchicalVAE,
    features: list[Tensor],
    images: Tensor,
    samples: int,
    generator: torch.Generator,
) -> Draw:
    """One top-down pass with `samples` draws for each of n images, side by side."""

    def repeated(x: Tensor) -> Tensor:  # (n, C, H, W) to (n * samples, C, H, W), channels last as before
        return x.permute(0, 2, 3, 1).repeat_interleave(samples, 0).permute(0, 3, 1, 2) if samples > 1 else x

    def per_image(x: Tensor) -> Tensor:
        return x.cpu().double().unflatten(0, (len(images), samples))

    count = len(images) * samples
    noise = model.draw_posterior_noise(count, generator)
    result = model.top_down(FromPosterior([repeated(f) for f in features], noise), count)
    terms = elbo_terms(result, repeated(images))
    log_weight = per_image(log_importance_weight(result, terms.log_likelihood))
    return Draw(log_weight, per_image(terms.log_likelihood).sum(1), per_image(terms.kl).sum(1))


class Activity:
    """Variance over images of how far each latent unit's posterior is from its prior."""

    def __init__(self, model: HierarchicalVAE) -> None:
        self.model = model
        self.count = 0
        shapes = model.noise_shapes
        self.sums = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        self.squares = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]

    def add(self, features: list[Tensor]) -> None:
        """Some images' bottom-up features."""
        images = len(features[0])
        result = self.model.top_down(FromPosterior(features, noise=self.model.no_posterior_noise(images)), images)
        self.count += images
        for index, group in result.groups.items():
            shift = group.prior.to_noise(group.z).cpu().double()  # (n, L, H, W)
            self.sums[index] += shift.sum(0)
            self.squares[index] += shift.square().sum(0)

    def active(self) -> list[int]:
        """Number of active units of every group."""
        variances = [s / self.count - (m / self.count).square() for m, s in zip(self.sums, self.squares, strict=True)]
        return [int((variance > ACTIVE_VARIANCE).sum()) for variance in variances]
