"""What a config describes, in a page of text: levels, parameters, memory and operations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from nvae.models.families import build_model
from nvae.models.hierarchy import HierarchicalVAE
from nvae.schema import ModelConfig, TrainingParameters

# A weight, its gradient, and Adamax's two averages, float32.
TRAINING_BYTES_PER_PARAMETER = 4 * 4


class Cost(NamedTuple):
    """Per image, of the network."""

    operations: int  # of a forward pass; a multiplication and an addition are two
    saved_bytes: int  # kept by a forward pass for the gradient


def cost_per_image(config: ModelConfig) -> Cost:
    """Counted on a forward pass without memory or arithmetic (meta device)."""
    kept: dict[int, int] = {}  # bytes of every storage
    images = 2  # so that what does not grow with the batch can be told apart

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        held.append(tensor)  # no storage may be freed and its address used again while counting
        return tensor

    held: list[Tensor] = []
    with torch.device("meta"):
        model = build_model(config)
        model.recompute_activations(config.training_parameters.use_tensor_checkpoints)
        batch = torch.zeros(images, config.image_channels, config.input_dimension, config.input_dimension)
        noise = model.no_posterior_noise(images)
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch, noise).px_z.log_prob(batch)
    saved = sum(size for storage, size in kept.items() if storage not in own)
    return Cost(counter.get_total_flops() // images, saved // images)


def num_parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def summary(config: ModelConfig) -> str:
    """The page."""
    with torch.device("meta"):
        model = build_model(config)
    cost = cost_per_image(config)
    schedule, total = config.training_parameters, num_parameters(model)
    memory = schedule.batch_size * cost.saved_bytes + TRAINING_BYTES_PER_PARAMETER * total
    lines = [
        f"{config.family}, {config.image_channels} x {config.input_dimension} x "
        f"{config.input_dimension} images from {config.dataset.name}"
        + (f" padded by {model.padding}" if model.padding else "")
        + f", likelihood {config.sampling_method}",
        "",
        *_levels(model),
        "",
        *_parts(model, total),
        "",
        f"forward pass: {cost.operations / 1e9:.2f} GFLOP per image; a training step three times that",
        f"training memory: {cost.saved_bytes / 2**20:.1f} MiB per image for the gradient, about "
        f"{memory / 2**30:.2f} GiB with the weights at batch size {schedule.batch_size}"
        + (" (use_tensor_checkpoints)" if schedule.use_tensor_checkpoints else "")
        + (" in float32; less in half precision" if schedule.half_precision else ""),
        f"schedule: {schedule.epochs} epochs of batches of {schedule.batch_size}, KL warm-up {_warmup(schedule)}, "
        f"learning rate {schedule.learning_rate:g} to {schedule.learning_rate_min:g}",
    ]
    return "\n".join(lines)


def _warmup(schedule: TrainingParameters) -> str:
    if schedule.warmup_portion is not None:
        return f"{schedule.warmup_portion:.0%} of them"
    if schedule.warmup_steps is not None:
        return f"{schedule.warmup_steps:,} steps"
    return f"{schedule.warmup_epochs:g} epochs"


def _levels(model: HierarchicalVAE) -> list[str]:
    rows = [("level, from the top", "groups", "latent group", "encoder", "decoder", "latent numbers")]
    for i, level in enumerate(model.levels):
        size, side, _ = level.latent_shape
        rows.append(
            (
                f"{i + 1}: {side} x {side}",
                str(level.groups),
                f"{size} x {side} x {side}",
                f"{level.encoder_channels} channels",
                f"{level.decoder_channels} channels",
                f"{level.groups * size * side * side:,}",
            )
        )
    return table(rows)


def _parts(model: HierarchicalVAE, total: int) -> list[str]:
    rows = [("part", "parameters", "")]
    parts: list[tuple[str, int]] = []
    own = sum(parameter.numel() for parameter in model.parameters(recurse=False))
    if own:
        parts.append(("initial state", own))
    for name, child in model.named_children():
        if child is not model.groups:
            parts.append((name, num_parameters(child)))
            continue
        index = 0
        for i, level in enumerate(model.levels):
            groups = model.groups[index : index + level.groups]
            index += level.groups
            parts.append((f"latent groups of level {i + 1}", sum(num_parameters(group) for group in groups)))
    rows += [(name, f"{count:,}", f"{count / total:.0%}") for name, count in parts]
    rows.append(("all", f"{total:,}", ""))
    return table(rows)


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines with columns as wide as their widest cell; the first one to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
