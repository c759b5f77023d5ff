"""The training state in a checkpoint: what is saved, how a saved state is checked, and how it is restored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nvae.checkpoint import CheckpointError, load, restore
from nvae.config import flat
from nvae.optim import OPTIMIZERS
from nvae.schema import ModelConfig
from nvae.system.errors import Remedy, UserError
from nvae.training.history import BestWeights, ValidationHistory
from nvae.training.recovery import Recovery
from nvae.training.state import RunningMean, find_mismatch

if TYPE_CHECKING:
    from nvae.training.trainer import Trainer


def training_state(trainer: Trainer) -> dict[str, Any]:
    """Return the state of a trainer beside the weights of `eval_model` and the metadata.

    Keys: the parts of `trainer.evolving`; data, the fingerprint of the images; with an EMA also model, the weights
    that the optimizer changes.
    """
    state = {name: part.state_dict() for name, part in trainer.evolving.items()} | {
        "data": trainer.data.fingerprints[0]
    }
    if trainer.ema is not None:
        state["model"] = {name: tensor.contiguous() for name, tensor in trainer.model.state_dict().items()}
    return state


def restore_training(trainer: Trainer, path: Path, run: str | None = None) -> list[str]:
    """Restore a checkpoint; return warnings. Raises CheckpointError or UserError and then changes nothing.

    Without an EMA in the file, an EMA starts from the weights of the file. Without an EMA in the config, training
    continues from the weights that the optimizer changed. run: the only run whose checkpoint is accepted, if given.
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
    refuse_changes(trainer.config, content["config"], path)
    # Checkpoints without these parts are from before the state had them.
    newer = {"history": {"validations": []}, "best": {}, "recovery": Recovery().state_dict()}
    training, warnings = newer | content["training"], []
    if "recovery" not in content["training"] and isinstance(training.get("progress"), dict):
        training["progress"] = {k: v for k, v in training["progress"].items() if k != "consecutive_skips"}
    regularizers = trainer.regularizers.state_dict()
    if content["version"] == 1 and find_mismatch(training.get("regularizers"), regularizers, ""):
        training = training | {"regularizers": regularizers}
        warnings.append(
            f"{path} was written by version 1, which regularized other parts of the network: the state of the "
            "regularization starts anew."
        )
    if mismatch := find_mismatch(
        training, _template(trainer, training, content["config"].training_parameters.ema_decay is not None), "training"
    ):
        raise CheckpointError(
            f"{path} holds a training state that does not fit: {mismatch}. Use the program that wrote the file, or "
            "start over.",
            Remedy.START_OVER,
        )
    if any(state["step"] < 0 for state in training["optimizer"]["state"].values()):
        raise CheckpointError(f"{path} holds a training state that does not fit: a negative number of steps.")
    if training["data"] not in trainer.data.fingerprints:
        changed = f"the images of the data set {trainer.config.dataset.name} are not those that {path} was trained on"
        if not trainer.continue_with_changed_data:
            raise UserError(
                f"{changed}. Restore the old images, start over, or continue with the changed data: the training then "
                "differs from one without a change.",
                Remedy.START_OVER,
                Remedy.CHANGED_DATA,
            )
        warnings.append(f"{changed}; it continues with {len(trainer.data.training):,} training images")
    restore(trainer.eval_model, content, path)
    restore(trainer.model, content | {"weights": training.get("model", content["weights"])}, path)
    trainer.metadata = content["metadata"]
    options = [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimizer.param_groups]
    for name, part in trainer.evolving.items():
        if name != "scaler" or (training["scaler"] and trainer.scaler.is_enabled()):
            part.load_state_dict(training[name])
    if trainer.schedule.early_stopping_patience is None:
        trainer.best_weights.best = None
    for group, own in zip(trainer.optimizer.param_groups, options, strict=True):
        group.update(own)  # the config and this program decide all options, not the file
    if content["config"].training_parameters != trainer.schedule:
        trainer.recovery.adapt(content["config"].training_parameters, trainer.schedule)
    return warnings


def _template(trainer: Trainer, saved: dict[str, Any], has_ema: bool) -> dict[str, Any]:
    """Return a training state with the trainer's shapes, and with those keys that may differ taken from `saved`.

    has_ema: whether the run that saved the state had an EMA.
    """
    own = {name: part.state_dict() for name, part in trainer.evolving.items()} | {"data": ""}
    if has_ema:  # the EMA may be turned on or off in a run
        own["model"] = trainer.model.state_dict()
    if isinstance(saved.get("scaler"), dict) and not (saved["scaler"] and own["scaler"]):
        own["scaler"] = saved["scaler"]  # written on a device that needs no loss scale, or continued on one
    progress = saved.get("progress")
    steps = progress.get("step") if isinstance(progress, dict) else None
    own["history"] = ValidationHistory.template(saved["history"], steps if isinstance(steps, int) else 0)
    own["recovery"] = Recovery.template(saved["recovery"])
    own["best"] = BestWeights.template(saved["best"], trainer.model)
    own["running_mean"] = RunningMean.template(saved.get("running_mean"), len(trainer.model.groups))
    if isinstance(saved.get("optimizer"), dict):
        steps_taken = isinstance(progress, dict) and steps != progress.get("skipped_steps")
        own["optimizer"] = _optimizer_template(trainer, saved["optimizer"], own["optimizer"], steps_taken)
    return own


def _optimizer_template(
    trainer: Trainer, saved: dict[str, Any], own: dict[str, Any], steps_taken: bool
) -> dict[str, Any]:
    moments, saved_states = OPTIMIZERS[trainer.schedule.optimizer].moments, saved.get("state")
    states = {i: dict.fromkeys(moments, parameter) for i, parameter in enumerate(trainer.model.parameters())}
    if isinstance(saved_states, dict) and (saved_states or not steps_taken):
        # A parameter without a gradient has no state, and before the first step none has.
        states = {i: state for i, state in states.items() if i in saved_states}
        for i, state in states.items():
            counts = saved_states[i] if isinstance(saved_states[i], dict) else {}
            states[i] = {name: torch.zeros(()) for name in counts} | {"step": torch.zeros(())} | state
    groups = own["param_groups"]
    saved_groups = saved.get("param_groups")
    if isinstance(saved_groups, list) and len(saved_groups) == len(groups):
        # Versions of torch differ in their options. Every step sets the options of `hyperparameters`.
        groups = [
            {key: group.get(key, value) for key, value in saved.items()} | {"params": group["params"]}
            for group, saved in zip(groups, saved_groups, strict=True)
            if isinstance(saved, dict)
        ]
    return {"state": states, "param_groups": groups}


def refuse_changes(config: ModelConfig, saved: ModelConfig, path: Path) -> None:
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
