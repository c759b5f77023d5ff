"""Validation during training: ELBO and quality of samples; and the evaluation of the result at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from nvae.checkpoint import CheckpointError, load, load_model, weights_digest, with_best_weights
from nvae.data.registry import evaluation_images
from nvae.evaluation.likelihood import Evaluation, evaluate
from nvae.evaluation.quality.extractors.transformations import load_self
from nvae.evaluation.quality.measure import Settings, measure_quality
from nvae.evaluation.quality.report import too_few_images
from nvae.evaluation.report import is_saved, report, save_report
from nvae.inference.sampling import Sampler
from nvae.models.families import clone
from nvae.models.hierarchy import HierarchicalVAE
from nvae.schema import ModelConfig
from nvae.schema.choices import Part
from nvae.system.errors import DivergenceError
from nvae.system.signals import StopRequest
from nvae.system.texts import counted
from nvae.training.metrics import COLLAPSED_KL
from nvae.training.recovery import ADVICE, highest_usual
from nvae.training.run_files import RunFiles
from nvae.training.run_output import RunOutput, model_for_pictures, picture_names
from nvae.training.schedules import Validation, kl_warmup
from nvae.training.trainer import Trainer

VALIDATIONS = 10  # the last validations, with which a new one is compared
MIN_VALIDATIONS = 3
ACTIVE_IMAGES = 500  # whose active units a validation counts
SAMPLES = 1000
EVALUATION = "evaluation.json"
ONLY_IMAGES = "only_images"  # in the metadata of a training with a part of the images
FID = "fid_self"  # the key in a line of metrics
ITERATIONS = 20
DIVERGED_BITS = 4  # bits per dimension above the uniform distribution


def validate(trainer: Trainer, output: RunOutput) -> dict[str, Any]:
    """Evaluate the model on the validation images, with one sample per image; return metrics.

    The validation is added to the trainer's history. Every rank calls this, for its share of the images. Raises
    DivergenceError for a result that a recovery has ruined.
    """
    schedule = trainer.schedule
    images, targets = evaluation_images(trainer.data, "validation", trainer.config)
    trainer.estimate_statistics()
    share_statistics(trainer)
    evaluation = evaluate(
        trainer.eval_model,
        images,
        schedule.batch_size,
        1,
        schedule.seed,
        targets,
        count_active=ACTIVE_IMAGES,
        ranks=trainer.ranks,
    )
    check_validation(trainer, evaluation.elbo.mean, evaluation.elbo_bits.mean)
    check_health(trainer, output, evaluation, "")
    record_validation(trainer, evaluation.elbo.mean, evaluation.kl_per_group)
    return {
        "validation_elbo": evaluation.elbo.mean,
        "validation_bits_per_dimension": evaluation.elbo_bits.mean,
        "validation_kl_per_group": evaluation.kl_per_group,
        "validation_active_units_per_group": evaluation.active_units_per_group,
    }


def evaluate_result(trainer: Trainer, output: RunOutput, model: HierarchicalVAE, progress: bool) -> None:
    """Evaluate the result of a run: evaluation.json and .png in its folder, once for a trained model.

    The images are the test images, or the validation images of a data set without a test part. progress: show a bar.
    Every rank calls this; the first one writes.
    """
    schedule, ranks, reporter = trainer.schedule, trainer.ranks, output.reporter
    samples, path = schedule.evaluation_samples, output.folder / EVALUATION
    metadata = _evaluated(output.files, trainer.position.step, model)
    if samples == 0 or ranks.from_first(lambda: is_saved(path, metadata | {"samples": samples})):
        return
    part: Part = "validation" if trainer.data.test is None else "test"
    images, targets = evaluation_images(trainer.data, part, trainer.config)
    title = trainer.data.title(part)
    reporter.info(f"evaluating on {len(images):,} {title} with {counted(samples, 'importance sample')} per image")
    evaluation = evaluate(
        model, images, schedule.batch_size, samples, schedule.seed, targets, progress=progress, ranks=ranks
    )
    if not ranks.is_first:
        return
    reporter.info(report(evaluation, model, title))
    check_health(trainer, output, evaluation, "at the end")
    output.attempt(
        "the evaluation", lambda: save_report(evaluation, model, path, metadata | {"part": part, "images_are": title})
    )


def _evaluated(files: RunFiles, step: int, model: HierarchicalVAE) -> dict[str, Any]:
    """Return what the evaluation of a run's result is of."""
    seed = model.config.training_parameters.seed
    return {"model": files.name, "step": step, "seed": seed, "weights": weights_digest(model)}


def is_complete(config: ModelConfig, files: RunFiles, only_images: int | None = None) -> bool:
    """Return whether nothing is left to do for a run with this config: it is trained, saved, copied, drawn, evaluated.

    only_images: the first images of each part alone, None for all.

    Reads the files of the run, and not its images. A file that cannot be read is left to the training.
    """
    schedule, needed = config.training_parameters, [files.checkpoint, files.model]
    if schedule.keep_best:
        needed.append(files.best)
    needed += [files.folder / name for name in ("data.png", "report.html", *picture_names(schedule))]
    if not all(path.is_file() for path in needed):
        return False
    try:
        content, model = with_best_weights(load(files.checkpoint)), load_model(files.model)
        progress, weights = content["training"]["progress"], content["weights"]
        step, epoch = progress["step"], progress["epoch"]
        saved = content["config"]
        config = config.with_default("likelihood_tails", saved.likelihood_tails)
        is_result = all(torch.equal(tensor, weights[name]) for name, tensor in model.named_parameters())
    except (CheckpointError, LookupError, TypeError):
        return False
    if not is_result or not saved == model.config == config or content.get("run") != files.name:
        return False
    if content["metadata"].get(ONLY_IMAGES) != only_images:
        return False
    every = schedule.keep_every or schedule.epochs + 1
    if epoch >= every and not files.epoch_copy(epoch // every * every).is_file():
        return False
    evaluated = _evaluated(files, step, model) | {"samples": schedule.evaluation_samples}
    return not evaluated["samples"] or is_saved(files.folder / EVALUATION, evaluated)


def check_health(trainer: Trainer, output: RunOutput, evaluation: Evaluation, when: str) -> None:
    """Warn of a result that is finite but shows a useless model.

    Before the end of the warm-up, a small KL is none, nor is anything in a pre-training.
    """
    if trainer.position.in_epochs <= trainer.model.pretraining_epochs:
        return
    below = evaluation.kl_per_group[trainer.model.groups_above_scales :]  # a context, for example, never collapses
    if trainer.rates.kl_coefficient >= 1 and max(below) < COLLAPSED_KL:
        output.reporter.warn(
            f"KL collapse: the KL of every latent group is below {COLLAPSED_KL} nats, so the latents say nothing "
            "about the images. Start over with a longer KL warm-up (training_parameters.warmup_epochs), kl_balancing, "
            "or a kl_constant below 1.",
            once=f"collapse {when}",
        )
    bits, uniform = evaluation.elbo_bits.mean, trainer.config.pixel_bits
    if bits > uniform + DIVERGED_BITS:
        output.reporter.warn(
            f"divergence: got {bits:.1f} bits/dim on the validation images, where a uniform distribution has "
            f"{uniform}. Start over with a lower training_parameters.learning_rate, a longer "
            "warm-up of the learning rate, or gradient_clipping.",
            once=f"divergence {when}",
        )


def check_validation(trainer: Trainer, elbo: float, bits_per_dimension: float) -> None:
    """Raise DivergenceError if the ELBO of a validation, nats per image, is not finite or far worse than the last ones.

    Far worse is far worse than a uniform distribution, and far below the last ten validations since the end of the KL
    warm-up, of which there must be three. After a recovery without progress since, the first of these is enough.
    """
    step, most_bits = trainer.position.step, trainer.config.pixel_bits + DIVERGED_BITS
    if not math.isfinite(elbo):
        raise DivergenceError(f"the validation ELBO became {elbo} at step {step}.", ADVICE)
    warmed_up = max(sum(kl_warmup(trainer.position)), trainer.model.pretraining_epochs)  # before, the ELBO may fall
    if trainer.position.in_epochs < warmed_up or bits_per_dimension <= most_bits:
        return
    problem = (
        f"the validation ELBO at step {step} is far too low: got {elbo:.6g} nats, {bits_per_dimension:.3g} bits/dim"
    )
    if trainer.recovery.tries:
        raise DivergenceError(f"{problem}, expected at most {most_bits} bits/dim.", ADVICE)
    recent = [-elbo for epoch, elbo in trainer.history.validations if epoch >= warmed_up][-VALIDATIONS:]
    if len(recent) >= MIN_VALIDATIONS and -elbo > (limit := highest_usual(recent)):
        raise DivergenceError(f"{problem}, expected at least {-limit:.6g} nats, given the last validations.", ADVICE)


def share_statistics(trainer: Trainer) -> None:
    """Give all ranks the running statistics of the first one, which differ without synchronized batch norms.

    And the vectors of the regularization's power iterations, of which each rank computes a part.
    """
    for model in dict.fromkeys((trainer.model, trainer.eval_model)):  # not a set: all ranks need one order
        trainer.ranks.copy_buffers(model)
    for term in trainer.regularizers.values():
        trainer.ranks.copy_buffers(term, shared=True)


def record_validation(trainer: Trainer, elbo: float, kl_per_group: list[float]) -> None:
    """Record a validation of `eval_model` at this position; nats per image.

    The ELBO of a pre-training, which trains a part of the model, is compared with no other one.
    """
    validation = Validation(trainer.position.in_epochs, elbo)
    trainer.metadata["kl_per_group"] = kl_per_group
    if validation.epoch <= trainer.model.pretraining_epochs:
        return
    trainer.history.validations.append(validation)
    if trainer.schedule.early_stopping_patience is not None:
        trainer.best_weights.add(validation, kl_per_group, trainer.eval_model)


def result(trainer: Trainer) -> tuple[HierarchicalVAE, dict[str, Any]]:
    """Return the model that the training results in, and its metadata: with early stopping the best weights."""
    best = trainer.best_weights.best
    if best is None:
        return trainer.eval_model, trainer.metadata
    model = clone(trainer.eval_model)
    model.load_state_dict(best.weights)
    return model, trainer.metadata | {"kl_per_group": best.kl_per_group}


class _StopMeasurementError(Exception):
    """A signal came; training has to save and end."""


def sample_quality(trainer: Trainer, stop: StopRequest, warn: Callable[..., object]) -> dict[str, Any]:
    """Return metrics of 1,000 samples at temperature 1 against training images; none after a signal to stop.

    warn: receives a warning of too few images. Raises UserError where the quality cannot be measured.
    """

    def until_stopped(items: Sequence[Any], description: str) -> Iterable[Any]:
        for item in items:
            if stop.signal is not None:
                raise _StopMeasurementError
            yield item

    model, data = model_for_pictures(trainer), trainer.data
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
    if features.too_few_images:
        warn(too_few_images("self", extractor.dimensions), once="few images")
    assert features.manifolds is not None and features.kid is not None
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
        return sample_quality(trainer, stop, warn)
    except Exception as error:  # from files, memory, linear algebra
        warn(f"the quality of samples could not be measured: {error}", once=f"quality: {error}")
        return {}
