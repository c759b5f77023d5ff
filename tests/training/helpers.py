"""Helpers of the training tests: config keys, steps, and all numbers of a trainer."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from nvae.schema import TrainingParameters
from nvae.training.position import Position
from nvae.training.trainer import Trainer

NVLABS = {"style": "nvlabs", "n_mix": 2, "num_flows": 1}
LADDER = {"family": "ladder", "latents_per_scale": [1, 1], "channels": 4, "encoder_blocks_per_scale": 1}
DVP = LADDER | {
    "family": "dvp",
    "context_size": 3,
    "diffusion_steps": 3,
    "unet_blocks": 1,
    "unet_dropout": 0.2,  # from torch's default generator
}
VDVAE = {
    "family": "vdvae",
    "enc_blocks": "auto",
    "dec_blocks": "auto",
    "custom_width": "auto",
    "width": 4,
    "latent_size": 2,
    "bottleneck_multiple": 0.5,
}
TOY_FACES = {"name": "toy_faces"}


def at(epoch: float, schedule: TrainingParameters, steps_per_epoch: int) -> Position:
    """Return the position at an epoch, with fractions."""
    images = steps_per_epoch * schedule.batch_size
    return Position(schedule, images, epoch=int(epoch), image=(epoch - int(epoch)) * images)


def advance(trainer: Trainer, steps: int) -> list[dict[str, Any]]:
    """Take some steps; return their metrics."""
    return [trainer.step(next(trainer.batches())) for _ in range(steps)]


def flat_state(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dictionaries and lists, tensors copied, with their dotted names."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from flat_state(part, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from flat_state(part, f"{key}.{i}")
    else:
        yield key, value.clone() if torch.is_tensor(value) else value


def everything(trainer: Trainer) -> dict[str, Any]:
    """Return all numbers of a trainer, by name."""
    parts = {name: part.state_dict() for name, part in trainer.evolving.items()}
    parts |= {"weights": trainer.model.state_dict(), "eval_weights": trainer.eval_model.state_dict()}
    return dict(flat_state(parts))


def differences(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Return the names of the numbers that differ between two results of `everything`."""

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if torch.is_tensor(a) and torch.is_tensor(b) else a is b or a == b

    return {key for key in before | after if not same(before.get(key), after.get(key))}


def gradient_norm(trainer: Trainer) -> float:
    """Return the norm of the gradients of the last step."""
    return math.sqrt(sum(p.grad.square().sum().item() for p in trainer.model.parameters() if p.grad is not None))
