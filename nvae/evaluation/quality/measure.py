"""Measure the quality of a model's samples against images of a data set, at one or several temperatures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from nvae.checkpoint import weights_digest
from nvae.data.images import Data, images_digest, to_float
from nvae.data.registry import evaluation_images
from nvae.evaluation.likelihood import Estimate
from nvae.evaluation.quality.copies import Copies, find_copies, thumbnails, thumbnails_of
from nvae.evaluation.quality.distances import FeatureStatistics, frechet_distance, kernel_distance
from nvae.evaluation.quality.extractors.base import Extractor
from nvae.evaluation.quality.features import STEP, THUMBNAILS, Described, describe
from nvae.evaluation.quality.manifolds import Manifold, manifolds
from nvae.evaluation.quality.path_length import (
    EPSILON,
    NamedDistance,
    movement_per_group,
    moving_groups,
    path_lengths,
    squared_distance,
)
from nvae.inference.arguments import Factors, check_count, check_seeds, format_values
from nvae.inference.sampling import Sampler
from nvae.models.hierarchy import HierarchicalVAE
from nvae.schema import ModelConfig
from nvae.schema.choices import Metric, Part, Pixels
from nvae.system.errors import InvalidValueError
from nvae.system.memory_maps import chunks, release_pages
from nvae.system.progress import Progress
from nvae.system.ranks import Ranks
from nvae.system.seeds import seeded

METRICS = get_args(Metric)
OF_FEATURES = METRICS[:3]
Functions = dict[str, Callable[[Tensor], Tensor]]


class Settings(NamedTuple):
    """What is measured, and of how many images."""

    metrics: tuple[str, ...] = METRICS
    images: int = 10_000  # samples, and images of the data set if there are as many
    neighbors: tuple[int, ...] = (3, 5)
    pixels: Pixels = "mean"
    seed: int = 0  # of the first sample; the others have the following seeds
    pairs: int = 500  # of path lengths
    ppl_groups: str | int = "all"
    epsilon: float = EPSILON

    def check(self, model: HierarchicalVAE) -> None:
        """Raise InvalidValueError for a wrong value."""
        if not self.metrics or not set(self.metrics) <= set(METRICS):
            raise InvalidValueError("metrics", ", ".join(self.metrics) or "none", f"some of {', '.join(METRICS)}")
        for k in self.neighbors:
            check_count("neighbors", k)
        check_count("images", self.images, max([20, *(k + 1 for k in self.neighbors)]))
        check_seeds([self.seed])
        moving_groups(len(model.groups), self.ppl_groups)

    @property
    def needs_features(self) -> bool:
        """Whether one of the metrics compares features of samples with features of images."""
        return any(metric in OF_FEATURES for metric in self.metrics)

    @property
    def shown(self) -> Pixels:
        """The pixels of path lengths and of copies: random draws of pixels would hide a movement, and a copy."""
        return "mean" if self.pixels == "sample" else self.pixels


class Reference(NamedTuple):
    """Images that samples are compared with, and as many others of the same part, which show what is attainable."""

    part_u8: Tensor  # (M, C, S, S): all images of the part; may be larger than the memory
    own: Tensor  # (N,): indices of the images
    others: Tensor | None  # (N,); None where the part has too few images
    bits: int

    def get(self, indices: Tensor) -> Tensor:
        """Return images (B, C, S, S) in [0, 1] as the model's pixels can represent them, in 8 bits."""
        images = to_float(self.part_u8[indices], "cpu", self.bits)
        release_pages()
        return in_8_bits(images)

    def key(self, indices: Tensor) -> dict[str, Any]:
        """Return what identifies images: their pixels, all of them."""
        # In chunks, because a digest of more than 1 GiB leaves out images.
        digests = [images_digest(self.part_u8[part]) for part in chunks(indices, STEP)]
        return {"images": digests, "bits": self.bits}


class FeatureQuality(NamedTuple):
    """Distances between features; None for what was not measured."""

    fid: float | None = None
    kid: Estimate | None = None
    manifolds: dict[int, Manifold] | None = None  # by the number of neighbors
    too_few_images: bool = False  # for the covariances of the FID, see `FeatureStatistics`


class Row(NamedTuple):
    """The quality of the samples at one temperature, or of other real images."""

    temperature: Factors | None  # None: real images
    features: dict[str, FeatureQuality]  # by the extractor's name
    path_lengths: dict[str, Estimate]  # by the distance's name
    copies: Copies | None = None
    seconds_per_image: float | None = None  # of sampling, without the extractors


class HeldOut(NamedTuple):
    """The search for copies among validation images, where only those that the data set has twice can be copies."""

    images: int
    equal: int  # thumbnails that equal one of a training image
    copies: int  # without the equal ones: the errors of the search, and nearly equal pictures


class Quality(NamedTuple):
    """The quality of a model's samples."""

    settings: Settings
    samples: int
    reference_images: int
    part: Part
    extractors: list[dict[str, Any]]
    rows: list[Row]
    real: Row | None  # as many other images of the data set against the same reference
    movement: list[float] | None  # per latent group, at the temperature of the last row
    held_out: HeldOut | None  # what the search for copies says of validation images


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
    return Reference(chosen, own, others if len(others) == len(own) else None, config.pixel_bits)


def measure_quality(
    model: HierarchicalVAE,
    data: Data,
    extractors: Sequence[Extractor],
    samplers: Sequence[Sampler],
    settings: Settings | None = None,
    part: Part = "training",
    statistics: dict[str, FeatureStatistics] | None = None,
    lpips: NamedDistance | None = None,
    progress: Progress = False,
    keep_features: bool = True,
    ranks: Ranks | None = None,
) -> Quality:
    """Measure the samples of each of the samplers against images of a data set.

    data: without binarization (`load_original_images`). extractors: networks whose features are compared. samplers: one
    per temperature, all of `model`. part: of the data set. statistics: by the name of an extractor, of reference images
    from a file, for its Frechet distance alone. lpips: the distance LPIPS, for path lengths.
    keep_features: keep the features of samples on the disk in parts, so that a call after an interruption continues.
    ranks: processes that share the images whose features are computed, each with the same arguments. The first one
    measures everything else, and its result is complete.
    Raises UserError.
    """
    ranks = ranks or Ranks()
    settings = settings or Settings()
    settings.check(model)
    reference = reference_images(data, part, model.config, settings.images, settings.pixels)
    least = max(settings.neighbors) + 1 if "precision-recall" in settings.metrics else 2
    if settings.needs_features and len(reference.own) < least:
        raise InvalidValueError(f"{part} images", len(reference.own), f"at least {least}")
    measurement = _Measurement(
        model, data, extractors, settings, reference, dict(statistics or {}), lpips, progress, keep_features, ranks
    )
    real, rows = measurement.of_other_images(), []
    for sampler in samplers:
        rows.append(measurement.of_samples(sampler))
        ranks.wait()  # the first one alone may measure longer than a message may take
    movement, held_out = None, None
    if "ppl" in settings.metrics and ranks.is_first:
        movement = movement_per_group(samplers[-1], pixels=settings.shown, seed=settings.seed)
    if "copies" in settings.metrics and ranks.is_first:
        unseen = thumbnails_of(data.validation[: settings.images], model.config.pixel_bits)
        copies = measurement.copies(unseen)
        held_out = HeldOut(len(unseen), copies.equal, copies.count - copies.equal)
    facts = [extractor.facts() for extractor in extractors]
    return Quality(settings, settings.images, len(reference.own), part, facts, rows, real, movement, held_out)


@dataclass
class _Measurement:
    """What stays the same for all rows of a `Quality`."""

    model: HierarchicalVAE
    data: Data
    all_extractors: InitVar[Sequence[Extractor]]
    settings: Settings
    reference: Reference
    statistics: dict[str, FeatureStatistics]
    lpips: InitVar[NamedDistance | None]
    progress: Progress
    keep_features: bool
    ranks: Ranks

    def __post_init__(self, all_extractors: Sequence[Extractor], lpips: NamedDistance | None) -> None:
        self.weights = weights_digest(self.model)
        self.extractors = {e.key: e for e in all_extractors} if self.settings.needs_features else {}
        self.distances = [NamedDistance(e.name, e.key, squared_distance(e)) for e in all_extractors if e.is_continuous]
        self.distances += [] if lpips is None else [lpips]
        own = self.reference.own
        self.real = {}
        if self.extractors:
            self.real = describe_images(self.reference, own, self.extractors, self.progress, self.ranks)
        if "fid" in self.settings.metrics:
            of_images = {e.name: FeatureStatistics.of(self.real[key]) for key, e in self.extractors.items()}
            self.statistics = of_images | self.statistics

    def of_other_images(self) -> Row | None:
        """Compare the other images of the part; None without features, or without enough images."""
        if not self.extractors or self.reference.others is None:
            return None
        values = describe_images(self.reference, self.reference.others, self.extractors, self.progress, self.ranks)
        return Row(None, self._compared(values), {})

    def of_samples(self, sampler: Sampler) -> Row:
        """Measure the samples of one temperature."""
        settings = self.settings
        functions: Functions = dict(self.extractors)
        for_copies: Functions = {THUMBNAILS: thumbnails} if "copies" in settings.metrics else {}
        if settings.pixels == settings.shown:
            described = shown = self._described(sampler, functions | for_copies, settings.pixels)
        else:
            described = self._described(sampler, functions, settings.pixels)
            shown = self._described(sampler, for_copies, settings.shown)
        if not self.ranks.is_first:
            return Row(sampler.temperature, {}, {})
        lengths = self._path_lengths(sampler) if "ppl" in settings.metrics and self.distances else {}
        copies = self.copies(shown.values[THUMBNAILS]) if for_copies else None
        seconds = described.seconds or shown.seconds
        per_image = seconds / settings.images if seconds else None
        return Row(sampler.temperature, self._compared(described.values), lengths, copies, per_image)

    def _path_lengths(self, sampler: Sampler) -> dict[str, Estimate]:
        settings, key = self.settings, self._key(sampler)
        groups = moving_groups(len(self.model.groups), settings.ppl_groups)
        pairs, epsilon, pixels = settings.pairs, settings.epsilon, settings.shown
        return path_lengths(sampler, self.distances, pairs, groups, epsilon, pixels, settings.seed, key)

    def copies(self, thumbnails_u8: Tensor) -> Copies:
        """Compare thumbnails of images with all training images."""
        bits = self.model.config.pixel_bits
        return find_copies(thumbnails_u8, self.data.training, bits, self.model.device, self.progress)

    def _key(self, sampler: Sampler) -> dict[str, Any]:
        """Return what identifies the images that a sampler makes of noise."""
        architecture = self.model.config.model_dump(exclude={"training_parameters", "dataset"})
        return {
            "weights": self.weights,
            "architecture": repr(sorted(architecture.items())),
            "dequantize": self.model.config.dataset.dequantize,
            "temperature": repr(sampler.group_temperatures),
            "iterations": sampler.iterations,
            "device": self.model.device.type,
        }

    def _described(self, sampler: Sampler, functions: Functions, pixels: Pixels) -> Described:
        if not functions:
            return Described({}, 0.0)
        settings, step = self.settings, min(STEP, sampler.batch_size)
        quiet = Sampler(self.model, sampler.temperature, sampler.iterations, sampler.cache, step)
        quiet.statistics = sampler.statistics  # measured here, with progress, and not in the time of sampling

        def make(part: slice) -> Tensor:
            return in_8_bits(quiet.sample(range(settings.seed + part.start, settings.seed + part.stop), pixels))

        key = self._key(sampler) | {"pixels": pixels, "seed": settings.seed}
        description = f"samples at temperature {format_values(sampler.temperature)}"
        return describe(
            settings.images, make, functions, key, description, self.progress, self.keep_features, step, self.ranks
        )

    def _compared(self, values: dict[str, Tensor]) -> dict[str, FeatureQuality]:
        """Compare features (N, D), by the key of an extractor, with those of the reference images."""
        metrics, result = self.settings.metrics, {}
        if not self.ranks.is_first:
            return {}
        for key, extractor in self.extractors.items():
            features, real, name = values[key], self.real[key], extractor.name
            fid, too_few = None, False
            if "fid" in metrics:
                statistics = FeatureStatistics.of(features), self.statistics[name]
                fid, too_few = frechet_distance(*statistics), any(part.has_too_few_images for part in statistics)
            kid = kernel_distance(real, features) if "kid" in metrics else None
            overlap = manifolds(real, features, self.settings.neighbors) if "precision-recall" in metrics else None
            result[name] = FeatureQuality(fid, kid, overlap, too_few)
        return result


def describe_images(
    reference: Reference,
    indices: Tensor,
    functions: dict[str, Extractor],
    progress: Progress = False,
    ranks: Ranks | None = None,
) -> dict[str, Tensor]:
    """Return the features (N, D) of images of the reference's part, indices (N,), by the key of each extractor."""

    def make(part: slice) -> Tensor:
        return reference.get(indices[part])

    key, description = reference.key(indices), "features of images"
    return describe(len(indices), make, functions, key, description, progress, ranks=ranks).values
