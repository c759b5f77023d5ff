"""The quality of samples during training: metrics of few samples with the extractor self."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nvae.evaluation.quality.extractors.transformations import load_self
from nvae.evaluation.quality.measure import Settings, measure_quality
from nvae.inference.sampling import Sampler
from nvae.system.signals import StopRequest
from nvae.training.trainer import Trainer

SAMPLES = 1000
FID = "fid_self"  # the key in a line of metrics
ITERATIONS = 20


class _StopMeasurementError(Exception):
    """A signal came; training has to save and end."""


def quality_due(trainer: Trainer) -> bool:
    """Return whether the last step completed the epochs between two measurements of quality."""
    every, progress = trainer.schedule.evaluate_quality_every, trainer.progress
    return every is not None and progress.image == 0 and progress.epoch > 0 and progress.epoch % every == 0


def sample_quality(trainer: Trainer, stop: StopRequest) -> dict[str, Any]:
    """Return metrics of 1,000 samples at temperature 1 against training images; none after a signal to stop.

    Raises UserError where the quality cannot be measured.
    """

    def until_stopped(items: Sequence[Any], description: str) -> Iterable[Any]:
        for item in items:
            if stop.signal is not None:
                raise _StopMeasurementError
            yield item

    model, data = trainer.model_for_pictures(), trainer.data
    settings = Settings(("fid", "kid", "precision-recall"), min(SAMPLES, max(20, len(data.training))), (3,))
    try:
        extractor = load_self(data.training, trainer.config.pixel_bits, trainer.device, until_stopped)
        sampler = Sampler(model, 1.0, ITERATIONS, progress=until_stopped)
        quality = measure_quality(
            model, data, [extractor], [sampler], settings, progress=until_stopped, keep_features=False
        )
    except _StopMeasurementError:
        return {}
    features = quality.rows[0].features["self"]
    manifold = features.manifolds[3]
    return {
        FID: features.fid,
        "kid_self": features.kid.mean,
        "precision_self": manifold.precision,
        "recall_self": manifold.recall,
    }


def try_to_measure(trainer: Trainer, stop: StopRequest, warn: Callable[..., object]) -> dict[str, Any]:
    """Return the metrics of `sample_quality`; an error becomes a warning and an empty result."""
    try:
        return sample_quality(trainer, stop)
    except Exception as error:  # from files, memory, linear algebra
        warn(f"the quality of samples could not be measured: {error}", once=f"quality: {error}")
        return {}
