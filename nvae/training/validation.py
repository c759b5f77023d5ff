"""Validation during training, and the evaluation of the result at its end."""

from __future__ import annotations

from typing import Any

from nvae.checkpoint import weights_digest
from nvae.data.registry import evaluation_images
from nvae.evaluation.likelihood import Evaluation, evaluate
from nvae.evaluation.report import is_saved, report, save_report
from nvae.models.hierarchy import HierarchicalVAE
from nvae.training.metrics import health_warnings
from nvae.training.recovery import check_validation
from nvae.training.run_output import RunOutput
from nvae.training.trainer import Trainer


def validate(trainer: Trainer, output: RunOutput) -> dict[str, Any]:
    """Evaluate the model on the validation images, with one sample per image; return metrics.

    The validation is added to the trainer's history. Every rank calls this, for its share of the images. Raises
    DivergenceError for a result that a recovery has ruined.
    """
    schedule = trainer.schedule
    images, targets = evaluation_images(trainer.data, "validation", trainer.config)
    trainer.share_statistics()
    evaluation = evaluate(
        trainer.eval_model,
        images,
        schedule.batch_size,
        1,
        schedule.seed,
        targets,
        count_active=False,
        ranks=trainer.ranks,
    )
    check_validation(trainer, evaluation.elbo.mean, evaluation.elbo_bits.mean)
    _check_health(trainer, output, evaluation, "")
    trainer.record_validation(evaluation.elbo.mean, evaluation.kl_per_group)
    return {
        "validation_elbo": evaluation.elbo.mean,
        "validation_bits_per_dimension": evaluation.elbo_bits.mean,
        "validation_kl_per_group": evaluation.kl_per_group,
    }


def evaluate_result(trainer: Trainer, output: RunOutput, model: HierarchicalVAE, progress: bool) -> None:
    """Evaluate the result of a run: evaluation.json and .png in its folder, once for a trained model.

    The images are the test images, or the validation images of a data set without a test part. progress: show a bar.
    Every rank calls this; the first one writes.
    """
    schedule, ranks, reporter = trainer.schedule, trainer.ranks, output.reporter
    samples, stem = schedule.evaluation_samples, output.folder / "evaluation"
    metadata = {"model": output.files.name, "step": trainer.progress.step, "seed": schedule.seed}
    metadata |= {"weights": weights_digest(model)}
    if samples == 0 or ranks.from_first(lambda: is_saved(stem, metadata | {"samples": samples})):
        return
    part = "validation" if trainer.data.test is None else "test"
    images, targets = evaluation_images(trainer.data, part, trainer.config)
    reporter.info(f"evaluating on {len(images):,} {part} images with {samples} importance samples per image")
    evaluation = evaluate(
        model, images, schedule.batch_size, samples, schedule.seed, targets, progress=progress, ranks=ranks
    )
    if not ranks.is_first:
        return
    reporter.info(report(evaluation, model, f"{part} images"))
    _check_health(trainer, output, evaluation, "at the end")
    output.try_to_draw(lambda: save_report(evaluation, model, stem, metadata | {"part": part}))


def _check_health(trainer: Trainer, output: RunOutput, evaluation: Evaluation, when: str) -> None:
    warmed_up = trainer.current_kl_coefficient >= 1
    below = evaluation.kl_per_group[
        trainer.model.groups_above_scales :
    ]  # those above, such as a context, never collapse
    warnings = health_warnings(below, evaluation.elbo_bits.mean, trainer.config, warmed_up)
    for kind, warning in warnings.items():
        output.reporter.warn(warning, once=f"{kind} {when}")
