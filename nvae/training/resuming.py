"""The training state in a checkpoint: saving it, restoring it exactly, and going back to it after a divergence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nvae.checkpoint import CheckpointError, load, restore, save, with_best_weights
from nvae.config import flat
from nvae.models.families import clone
from nvae.optim import load_optimizer
from nvae.schema import ModelConfig
from nvae.system.errors import DivergenceError, Remedy, UserError
from nvae.training.loggers import new_event
from nvae.training.recovery import Recovery
from nvae.training.state import Stateful, first_not_finite, load_all_or_none, refuse_not_finite
from nvae.training.trainer import Trainer


def check_good(trainer: Trainer) -> None:
    """Raise DivergenceError if the state of the training must not replace the last checkpoint."""
    refuse_not_finite(trainer.parts, trainer.position.step)
    trainer.recovery.refuse_doubt(trainer.position.step)


def save_training(trainer: Trainer, path: Path, run: str | None = None) -> None:
    """Write the checkpoint from which `resume_training` continues exactly; of several ranks, the first one writes.

    Beside the weights of `eval_model` and the metadata, the checkpoint has the parts of `trainer.evolving`, the
    fingerprint of the images, and with an EMA the weights that the optimizer changes. run: the name of the run.
    Raises CheckpointError, and DivergenceError if a number is not finite, or if 10 more steps were skipped than
    accepted: the file at `path` then stays as it is.
    """
    check_good(trainer)
    if not trainer.ranks.is_first:
        return
    state: dict[str, Any] = {name: part.state_dict() for name, part in trainer.evolving.items()}
    state["data"] = trainer.data.fingerprints[0]
    if trainer.ema is not None:
        state["model"] = {name: tensor.contiguous() for name, tensor in trainer.model.state_dict().items()}
    save(trainer.eval_model, path, state, trainer.metadata, run)


def calibrate(trainer: Trainer) -> None:
    """Fill the buffers that depend on the data, once before training."""
    trainer.model.calibrate(trainer.data.training)
    if trainer.ema is not None:
        trainer.ema.copy_buffers()


def start_from(trainer: Trainer, path: Path) -> None:
    """Take the weights and statistics of a file of the same networks. Raises CheckpointError."""
    content = trainer.ranks.from_first(lambda: with_best_weights(load(path)))
    for model in {trainer.model, trainer.eval_model}:
        restore(model, content, path)
    if first_not_finite({"weights": trainer.model}):
        raise CheckpointError(f"{path} has weights that are not finite numbers. Start from another file.")


def resume_training(trainer: Trainer, path: Path, run: str | None = None, changed_data: bool = False) -> list[str]:
    """Restore a checkpoint; return warnings. Raises CheckpointError or UserError and then changes nothing.

    Without an EMA in the file, an EMA starts from the weights of the file. Without an EMA in the config, training
    continues from the weights that the optimizer changed. A config that does not name `likelihood_tails`, whose default
    has changed, takes the value of the file. run: the only run whose checkpoint is accepted, if given.
    changed_data: continue although the images are not those of the checkpoint, with a warning.
    """
    content = trainer.ranks.from_first(lambda: load(path))
    if run is not None and content.get("run", run) != run:
        raise CheckpointError(
            f"{path} is a checkpoint of the run {content['run'][:100]!r}, expected one of {run!r}. Move the file away; "
            f"or to continue its training as the run {run!r}, start over from {path}.",
            Remedy.START_OVER_FROM_FILE,
        )
    if "training" not in content:
        raise CheckpointError(f"{path} is a model without a training state: expected a .checkpoint file.")
    config = trainer.config.with_default("likelihood_tails", content["config"].likelihood_tails)
    _refuse_changes(config, content["config"], path)
    warnings, saved = [], content["training"]
    if saved.get("data") not in trainer.data.fingerprints:
        changed = f"the images of the data set {trainer.config.dataset.name} are not those that {path} was trained on"
        if not changed_data:
            raise UserError(
                f"{changed}. Restore the old images, start over, or continue with the changed data: the training then "
                "differs from one without a change.",
                Remedy.START_OVER,
                Remedy.CHANGED_DATA,
            )
        warnings.append(f"{changed}; it continues with {len(trainer.data.training):,} training images")
    if content["version"] == 1 and _shapes(saved.get("regularizers")) != _shapes(trainer.regularizers.state_dict()):
        saved = saved | {"regularizers": trainer.regularizers.state_dict()}
        warnings.append(
            f"{path} was written by version 1, which regularized other parts of the network: the state of the "
            "regularization starts anew."
        )
    try:
        load_all_or_none(trainer.parts, _loads(trainer, content, saved, path))
    except ValueError as error:
        raise CheckpointError(
            f"{path} holds a training state that does not fit: training.{error}. Use the program that wrote the file, "
            "or start over.",
            Remedy.START_OVER,
        ) from error
    if config is not trainer.config:
        trainer.take_likelihood(config)
    trainer.metadata = content["metadata"]
    saved = content["config"].training_parameters.model_copy(update={"compile": trainer.schedule.compile})
    if saved != trainer.schedule:  # by more than how the same gradient is computed
        trainer.recovery.adapt(saved, trainer.schedule)
    trainer.position.end_epoch_without_a_full_batch()  # the batch size may have grown
    return warnings


def _loads(
    trainer: Trainer, content: dict[str, Any], saved: dict[str, Any], path: Path
) -> dict[str, Callable[[], object]]:
    """Return functions that load the parts of a checkpoint; each raises any exception for a state that does not fit."""
    # Checkpoints without these parts are from before the state had them.
    states = {"history": {"validations": []}, "best": {}, "recovery": Recovery().state_dict()} | saved
    weights = states.get("model", content["weights"])

    def load(name: str, part: Stateful) -> None:
        if name == "optimizer":
            load_optimizer(trainer.optimizer, states[name], trainer.schedule)
            if trainer.position.step > trainer.position.skipped_steps and not trainer.optimizer.state:
                raise ValueError("got no moments, expected those of the steps so far")
        elif name == "best":
            _load_best(trainer, states[name])
        elif name != "scaler" or (states[name] and trainer.scaler.is_enabled()):
            part.load_state_dict(states[name])

    evolving = trainer.evolving
    order = ["progress", *(name for name in evolving if name != "progress")]
    return {
        "weights": lambda: restore(trainer.eval_model, content, path),
        "model": lambda: restore(trainer.model, content | {"weights": weights}, path),
        **{name: partial(load, name, evolving[name]) for name in order},
    }


def _load_best(trainer: Trainer, state: dict[str, Any]) -> None:
    best_weights = trainer.best_weights
    best_weights.load_state_dict(state if trainer.schedule.early_stopping_patience is not None else {})
    if best := best_weights.best:
        clone(trainer.eval_model).load_state_dict(best.weights)  # raises an error for other shapes
        if len(best.kl_per_group) != len(trainer.model.groups):
            raise ValueError(f"kl_per_group: got {len(best.kl_per_group)} numbers, expected one per latent group")


def _shapes(state: Any) -> dict[str, Any] | None:
    return {name: getattr(tensor, "shape", None) for name, tensor in state.items()} if isinstance(state, dict) else None


def _refuse_changes(config: ModelConfig, saved: ModelConfig, path: Path) -> None:
    """Raise UserError if a config differs from a checkpoint's in a key that may not change, naming the keys.

    The schedule may change, but for its FIXED keys, and the path of the same images.
    """
    now, then = flat(config.model_dump()), flat(saved.model_dump())
    fixed = type(config.training_parameters).FIXED

    def is_changeable(key: str) -> bool:
        section, _, name = key.partition(".")
        return key == "dataset.path" or (section == "training_parameters" and name not in fixed)

    changed = [k for k in now | then if now.get(k) != then.get(k) and not is_changeable(k)]
    if changed:
        keys = ", ".join(f"{key} (was {then.get(key)}, is {now.get(key)})" for key in changed)
        raise UserError(
            f"the config has changed since {path} was written: {keys}. Only dataset.path and the keys of "
            f"training_parameters other than {' and '.join(sorted(fixed))} may change in a run. Undo the change, or "
            "start over.",
            Remedy.START_OVER,
        )


def recover(trainer: Trainer, path: Path, divergence: DivergenceError, run: str | None = None) -> dict[str, Any]:
    """Go back to the checkpoint at `path`, change what helps, save the checkpoint with the change; return the event.

    The event is also in the metadata. Raises DivergenceError if `max_recoveries` tries were made: the trainer and the
    file then stay as they are.
    """
    most, step, epoch = trainer.schedule.max_recoveries, trainer.position.step, trainer.position.in_epochs
    tries = trainer.recovery.tries
    if tries >= most:
        times = f"Going back to a checkpoint did not help, {tries} times in a row. " if tries else ""
        raise DivergenceError(divergence.problem, times + divergence.advice) from divergence
    try:
        resume_training(trainer, path, changed_data=True)  # the images were accepted when the training started
    except CheckpointError as error:
        raise DivergenceError(divergence.problem, f"Training cannot go back: {error}") from divergence
    recovery = trainer.recovery
    recovery.tries = tries  # progress since the checkpoint counts
    recovery.change(step, trainer.rates.regularization_coefficient > 0)
    text = (
        f"{divergence.problem} Training went back to step {trainer.position.step}, and continues with other random "
        f"draws and {recovery.learning_rate_factor:g} of the scheduled learning rate"
    )
    if recovery.doublings:
        text += f" and {recovery.regularization_factor:g} times the regularization"
    event = new_event("recovery", f"{text} (try {recovery.tries} of {most}).", step, epoch)
    trainer.metadata = trainer.metadata | {"events": [*trainer.metadata.get("events", []), event]}
    save_training(trainer, path, run)
    return event
