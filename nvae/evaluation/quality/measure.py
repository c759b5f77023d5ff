"""Measure the quality of a model's samples against images of a data set, at one or several temperatures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvae.arguments import ArgumentError, PerScale, check_count, check_seeds
from nvae.checkpoint import weights_digest
from nvae.data.images import Data, images_digest, to_float
from nvae.data.registry import Part, evaluation_images
from nvae.evaluation.likelihood import Estimate
from nvae.evaluation.quality.copies import Copies, find_copies, thumbnails, thumbnails_of
from nvae.evaluation.quality.distances import FeatureStatistics, frechet_distance, kernel_distance
from nvae.evaluation.quality.extractors.base import Extractor
from nvae.evaluation.quality.features import STEP, THUMBNAILS, describe
from nvae.evaluation.quality.manifolds import Manifold, manifolds
from nvae.evaluation.quality.path_length import (
    EPSILON,
    Distance,
    PathLength,
    movement_per_group,
    moving_groups,
    path_lengths,
    squared_distance,
)
from nvae.inference.sampling import Pixels, Sampler
from nvae.memory_maps import release_pages
from nvae.models.hierarchy import HierarchicalVAE
from nvae.progress import Progress
from nvae.schema import ModelConfig
from nvae.seeds import seeded

METRICS = ("fid", "kid", "precision-recall", "ppl", "copies")
OF_FEATURES = METRICS[:3]
IMAGES = 10_000
PAIRS = 500
NEIGHBORS = (3, 5)


class Settings(NamedTuple):
    """What is measured, and of how many images."""

    metrics: tuple[str, ...] = METRICS
    images: int = IMAGES  # samples, and images of the data set if there are as many
    neighbors: tuple[int, ...] = NEIGHBORS
    pixels: Pixels = "mean"
    seed: int = 0  # of the first sample; the others have the following seeds
    pairs: int = PAIRS  # of path lengths
    ppl_groups: str | int = "all"
    epsilon: float = EPSILON

    def check(self, model: HierarchicalVAE) -> None:
        """Raise ArgumentError for a wrong value."""
        for metric in self.metrics:
            if metric not in METRICS:
                raise ArgumentError("metrics", metric, f"some of {', '.join(METRICS)}")
        if not self.metrics:
            raise ArgumentError("metrics", "none", f"some of {', '.join(METRICS)}")
        for k in self.neighbors:
            check_count("neighbors", k)
        check_count("images", self.images, max([20, *(k + 1 for k in self.neighbors)]))
        check_seeds([self.seed])
        moving_groups(len(model.groups), self.ppl_groups)

    @property
    def needs_features(self) -> bool:
        """Whether one of the metrics compares features of samples with features of images."""
        return any(metric in OF_FEATURES for metric in self.metrics)


class Reference(NamedTuple):
    """Images that samples are compared with, and as many others of the same part, which show what is attainable."""

    part_u8: Tensor  # (M, C, S, S): all images of the part; may be larger than the memory
    own: Tensor  # (N,): indices of the images
    others: Tensor | None  # (N,) or fewer; None where the part has too few images
    key: dict[str, Any]
    bits: int

    def get(self, indices: Tensor) -> Tensor:
        """Return images (B, C, S, S) in [0, 1] as the model's pixels can represent them, in 8 bits."""
        images = to_float(self.part_u8[indices], "cpu", self.bits)
        release_pages()
        return in_8_bits(images)


class FeatureQuality(NamedTuple):
    """Distances between features; None for what was not measured."""

    fid: float | None = None
    kid: Estimate | None = None
    manifolds: dict[int, Manifold] | None = None  # by the number of neighbors


class Row(NamedTuple):
    """The quality of the samples at one temperature, or of other real images."""

    temperature: PerScale | None  # None: real images
    features: dict[str, FeatureQuality]  # by the extractor's name
    path_lengths: dict[str, PathLength]  # by the distance's name
    copies: Copies | None = None
    seconds_per_image: float | None = None  # of sampling, without the extractors
    continued: int = 0  # samples whose features an interrupted call had computed


class Quality(NamedTuple):
    """The quality of a model's samples."""

    settings: Settings
    samples: int
    reference_images: int
    part: Part
    extractors: list[dict[str, Any]]
    rows: list[Row]
    real: Row | None  # as many other images of the data set against the same reference
    movement: list[float] | None  # per latent group, of the last temperature
    held_out_copies: tuple[int, int] | None  # copies among images not used in training, and how many were compared


def in_8_bits(images: Tensor) -> Tensor:
    """Round images (B, C, S, S) in [0, 1] to multiples of 1 / 255, as a picture file does."""
    return images.mul(255).round().div(255)


def reference_images(data: Data, part: Part, config: ModelConfig, count: int | None, pixels: Pixels) -> Reference:
    """Choose images of a part of a data set, the same ones in every call; all of them where `count` is None.

    data: without binarization. Means and most likely pixels are compared with the original images, drawn pixels of a
    binary model with binary images. Raises UserError for a missing part.
    """
    chosen = evaluation_images(data, part, config).targets if pixels == "sample" else getattr(data, part)
    if chosen is None:
        chosen = evaluation_images(data, part, config).targets  # raises the error
    count = len(chosen) if count is None else count
    order = torch.randperm(len(chosen), generator=seeded(0, "reference images"))
    own, others = order[:count].sort().values, order[count : 2 * count].sort().values
    key = {"digest": images_digest(chosen), "count": count, "bits": config.pixel_bits}
    enough = len(others) >= len(own) // 2
    return Reference(chosen, own, others if enough else None, key, config.pixel_bits)


def measure_quality(
    model: HierarchicalVAE,
    data: Data,
    extractors: Sequence[Extractor],
    samplers: Sequence[Sampler],
    settings: Settings | None = None,
    part: Part = "training",
    statistics: dict[str, FeatureStatistics] | None = None,
    lpips: Distance | None = None,
    progress: Progress = False,
    keep_features: bool = True,
) -> Quality:
    """Measure the samples of each of the samplers against images of a data set.

    data: without binarization (`load_original_images`). extractors: networks whose features are compared. samplers: one
    per temperature, all of `model`. part: of the data set. statistics: by the name of an extractor, of reference images
    from a file, for its Frechet distance alone. lpips: the distance LPIPS, for path lengths.
    keep_features: keep the features of samples on the disk in parts, so that a call after an interruption continues.
    Raises UserError.
    """
    settings = settings or Settings()
    settings.check(model)
    reference = reference_images(data, part, model.config, settings.images, settings.pixels)
    least = max(settings.neighbors) + 1 if "precision-recall" in settings.metrics else 2
    if settings.needs_features and len(reference.own) < least:
        raise ArgumentError(f"{part} images", len(reference.own), f"at least {least}")
    functions = {extractor.key: extractor for extractor in extractors} if settings.needs_features else {}
    comparison = _Comparison(settings, statistics or {})
    real = None
    if functions:
        comparison.reference = describe_images(reference, functions, progress)
        if reference.others is not None:
            values = describe_images(reference, functions, progress, others=True)
            real = Row(None, comparison.all(values, functions), {})
    digest = weights_digest(model)
    rows = [
        _measure_samples(
            sampler, digest, data, settings, extractors, functions, comparison, lpips, progress, keep_features
        )
        for sampler in samplers
    ]
    movement = None
    if "ppl" in settings.metrics:
        movement = movement_per_group(samplers[-1], pixels=_shown(settings), seed=settings.seed)
    facts = [extractor.facts() for extractor in extractors]
    held_out = None
    if "copies" in settings.metrics:
        bits = model.config.pixel_bits
        unseen = thumbnails_of(data.validation[: settings.images], bits)
        held_out = (find_copies(unseen, data.training, bits, model.device, progress).count, len(unseen))
    return Quality(settings, settings.images, len(reference.own), part, facts, rows, real, movement, held_out)


class _Comparison:
    """Compares features with those of the reference images."""

    def __init__(self, settings: Settings, statistics: dict[str, FeatureStatistics]) -> None:
        self.settings = settings
        self.reference: dict[str, Tensor] = {}  # (N, D) by the name and digest of an extractor
        self._statistics = dict(statistics)

    def all(self, values: dict[str, Tensor], functions: dict[str, Extractor]) -> dict[str, FeatureQuality]:
        return {extractor.name: self._one(name, extractor, values[name]) for name, extractor in functions.items()}

    def _one(self, name: str, extractor: Extractor, features: Tensor) -> FeatureQuality:
        metrics, real = self.settings.metrics, self.reference[name]
        fid = None
        if "fid" in metrics:
            if extractor.name not in self._statistics:
                self._statistics[extractor.name] = FeatureStatistics.of(real)
            fid = frechet_distance(FeatureStatistics.of(features), self._statistics[extractor.name])
        return FeatureQuality(
            fid,
            kernel_distance(real, features) if "kid" in metrics else None,
            manifolds(real, features, self.settings.neighbors) if "precision-recall" in metrics else None,
        )


def describe_images(
    reference: Reference, functions: dict[str, Extractor], progress: Progress = False, others: bool = False
) -> dict[str, Tensor]:
    """Return the features (N, D) of reference images, or of the others, by the key of each extractor."""
    indices, what = (reference.others, "other") if others else (reference.own, "reference")
    key = {"images": what, **reference.key}
    return describe(
        len(indices),
        lambda part: reference.get(indices[part]),
        functions,
        key,
        f"features of {what} images",
        progress,
    ).values


def _shown(settings: Settings) -> Pixels:
    """Return the pixels of path lengths: random draws of pixels would hide the movement."""
    return "mean" if settings.pixels == "sample" else settings.pixels


def _measure_samples(
    sampler: Sampler,
    digest: str,
    data: Data,
    settings: Settings,
    extractors: Sequence[Extractor],
    functions: dict[str, Extractor],
    comparison: _Comparison,
    lpips: Distance | None,
    progress: Progress,
    keep_features: bool,
) -> Row:
    name = temperature_text(sampler.temperature)
    _ = sampler.statistics  # before the time of sampling is measured
    values, seconds, start = {}, None, 0
    kept: dict[str, Callable[[Tensor], Tensor]] = dict(functions)
    if "copies" in settings.metrics:
        kept[THUMBNAILS] = thumbnails
    if kept:
        architecture = sampler.model.config.model_dump(exclude={"training_parameters", "dataset"})
        key = {
            "weights": digest,
            "architecture": repr(sorted(architecture.items())),
            "temperature": repr(sampler.group_temperatures),
            "iterations": sampler.iterations,
            "pixels": settings.pixels,
            "seed": settings.seed,
            "device": sampler.model.device.type,
        }
        quiet = _without_progress(sampler)

        def make(step: slice) -> Tensor:
            seeds = range(settings.seed + step.start, settings.seed + step.stop)
            return in_8_bits(quiet.sample(seeds, settings.pixels))

        described = describe(settings.images, make, kept, key, f"samples at {name}", progress, keep_features)
        values, seconds, start = described.values, described.seconds / settings.images, described.start
    copies = None
    if "copies" in settings.metrics:
        bits = sampler.model.config.pixel_bits
        copies = find_copies(values[THUMBNAILS], data.training, bits, sampler.model.device, progress)
    lengths: dict[str, PathLength] = {}
    if "ppl" in settings.metrics:
        distances = {e.name: squared_distance(e) for e in extractors if e.is_continuous}
        distances |= {} if lpips is None else {"lpips": lpips}
        groups = moving_groups(len(sampler.model.groups), settings.ppl_groups)
        if distances:
            lengths = path_lengths(
                sampler, distances, settings.pairs, groups, settings.epsilon, _shown(settings), settings.seed
            )
    return Row(sampler.temperature, comparison.all(values, functions), lengths, copies, seconds, start)


def _without_progress(sampler: Sampler) -> Sampler:
    """Return a sampler with the same statistics, for the steps of a loop that shows its own progress."""
    quiet = Sampler(sampler.model, sampler.temperature, sampler.iterations, sampler.cache, STEP)
    quiet.statistics = sampler.statistics
    return quiet


def temperature_text(temperature: PerScale) -> str:
    """Return a temperature as a text: one number, or one per scale."""
    values = [temperature] if isinstance(temperature, int | float) else temperature
    return "temperature " + ",".join(f"{value:g}" for value in values)
