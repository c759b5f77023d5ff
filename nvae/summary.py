"""Describe a config in numbers and as a text: levels, parameters, memory and operations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from nvae.models.families import build_model
from nvae.models.group_names import group_names, groups_per_level, level_name
from nvae.models.hierarchy import HierarchicalVAE
from nvae.optim import num_moments
from nvae.schema import ModelConfig, TrainingParameters
from nvae.system.texts import counted

FLOAT32_BYTES = 4


class Cost(NamedTuple):
    """The cost of one image in the network, and of a forward pass beside its images: the pseudo-inputs of a prior."""

    operations: int  # of a forward pass; a multiplication and an addition are two
    saved_bytes: int  # activations that a forward pass keeps for the gradient
    fixed_operations: int
    fixed_bytes: int
    parameters: int


def cost_per_image(config: ModelConfig) -> Cost:
    """Count the cost on forward passes without memory or arithmetic (meta device), of two batch sizes."""
    with torch.device("meta"):
        model = build_model(config)
        model.recompute_activations(config.training_parameters.use_tensor_checkpoints)
    (operations, saved), (more_operations, more_saved) = _cost_of_pass(model, 2), _cost_of_pass(model, 4)
    per_image = (more_operations - operations) // 2, (more_saved - saved) // 2
    return Cost(*per_image, operations - 2 * per_image[0], saved - 2 * per_image[1], num_parameters(model))


def _cost_of_pass(model: HierarchicalVAE, images: int) -> tuple[int, int]:
    """Return the operations and the bytes saved for the gradient of a posterior pass on the meta device."""
    saved_sizes: dict[int, int] = {}  # bytes of every storage that autograd saves, by its address

    def record(tensor: Tensor) -> Tensor:
        saved_sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        references.append(tensor)  # the address of a freed storage could be used again while counting
        return tensor

    references: list[Tensor] = []
    config = model.config
    with torch.device("meta"):
        batch = torch.zeros(images, config.image_channels, config.input_dimension, config.input_dimension)
        noise = model.no_noise(images, posterior=True)
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(record, lambda tensor: tensor):
        model(batch, noise).px_z.log_prob(batch)
    return counter.get_total_flops(), sum(size for storage, size in saved_sizes.items() if storage not in own)


def num_parameters(module: nn.Module) -> int:
    """Count the learned numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def training_bytes(config: ModelConfig, batch_size: int, cost: Cost | None = None) -> int:
    """Estimate the memory of training in float32: activations, weights, gradients, moments, EMA.

    cost: of the config, where it is known already.
    """
    cost, schedule = cost or cost_per_image(config), config.training_parameters
    copies = 2 + num_moments(schedule) + (schedule.ema_decay is not None)  # 2: with the gradient
    return batch_size * cost.saved_bytes + cost.fixed_bytes + cost.parameters * FLOAT32_BYTES * copies


def summary(config: ModelConfig, cost: Cost | None = None) -> str:
    """Return a text that describes a config: levels, parameters, memory, operations and schedule.

    cost: of the config, where it is known already.
    """
    with torch.device("meta"):
        model = build_model(config)
    cost = cost or cost_per_image(config)
    schedule = config.training_parameters
    memory = training_bytes(config, schedule.batch_size // schedule.gradient_accumulation, cost)
    fixed = f", and {cost.fixed_operations / 1e9:.2f} GFLOP per batch" if cost.fixed_operations else ""
    lines = [
        f"{config.family}, {config.image_channels} x {config.input_dimension} x "
        f"{config.input_dimension} images from {config.dataset.name}"
        + (f" padded by {model.padding}" if model.padding else "")
        + f", likelihood {config.sampling_method}",
        "",
        *_levels(model),
        "",
        *_parts(model),
        "",
        f"forward pass: {cost.operations / 1e9:.2f} GFLOP per image{fixed}; training step: three times as many",
        f"training memory: {cost.saved_bytes / 2**20:.1f} MiB per image for activations, about "
        f"{memory / 2**30:.2f} GiB in all with {schedule.optimizer} at batch size {schedule.batch_size}"
        + (f" in {schedule.gradient_accumulation} parts" if schedule.gradient_accumulation > 1 else "")
        + (" (use_tensor_checkpoints)" if schedule.use_tensor_checkpoints else "")
        + (" in float32; less in half precision" if schedule.half_precision else ""),
        f"schedule: {counted(schedule.epochs, 'epoch')} with a batch size of {schedule.batch_size}, "
        f"KL warm-up {_warmup(schedule)}, learning rate {_rates(schedule)}",
    ]
    return "\n".join(lines)


def _warmup(schedule: TrainingParameters) -> str:
    if schedule.warmup_portion is not None:
        return f"{schedule.warmup_portion:.0%} of the epochs"
    if schedule.warmup_steps is not None:
        return counted(schedule.warmup_steps, "step")
    return f"{schedule.warmup_epochs:g} epochs"


def _rates(schedule: TrainingParameters) -> str:
    lowest = "" if schedule.learning_rate_schedule == "constant" else f" to {schedule.learning_rate_min:g}"
    return f"{schedule.learning_rate:g}{lowest}"


def _levels(model: HierarchicalVAE) -> list[str]:
    rows = [("level, from the top", "groups", "latent group", "encoder", "decoder", "latent numbers")]
    for i, level in enumerate(model.levels):
        size, side, _ = level.latent_shape
        rows.append(
            (
                f"{i + 1}: {level_name(level)}",
                str(level.groups),
                f"{size} x {side} x {side}",
                f"{level.encoder_channels} channels",
                f"{level.decoder_channels} channels",
                f"{level.groups * size * side * side:,}",
            )
        )
    return table(rows)


def _parts(model: HierarchicalVAE) -> list[str]:
    total = num_parameters(model)
    parts = {"initial state": sum(parameter.numel() for parameter in model.parameters(recurse=False))}
    for name, child in model.named_children():
        if name != "groups":
            parts[name] = num_parameters(child)
            continue
        for i, (level, indices) in enumerate(zip(model.levels, groups_per_level(model), strict=True)):
            name = level.name or f"latent groups of level {i + 1}"
            parts[name] = sum(num_parameters(model.groups[index]) for index in indices)
    rows = [(name, f"{count:,}", f"{count / total:.0%}") for name, count in parts.items() if count]
    return table([("part", "parameters", ""), *rows, ("all", f"{total:,}", "")])


def group_table(
    model: HierarchicalVAE, columns: Sequence[str], cells: Callable[[Sequence[int]], Sequence[str]]
) -> list[str]:
    """Return the lines of a table: a row per latent group, per level, where levels have several groups, and of all.

    Levels of one resolution share a row.

    columns: the names of all columns but the first. cells: their texts, from the indices of a row's groups.
    """
    rows: dict[str, Sequence[int]] = {name: [index] for index, name in enumerate(group_names(model))}
    if 1 < len(model.levels) < len(model.groups):
        levels: dict[str, list[int]] = {}
        for level, indices in zip(model.levels, groups_per_level(model), strict=True):
            levels.setdefault(level_name(level), []).extend(indices)
        rows |= {f"{name}, {counted(len(indices), 'group')}": indices for name, indices in levels.items()}
    rows["all"] = range(len(model.groups))
    header = ("latent group, top first", *columns)
    return table([header, *((name, *cells(indices)) for name, indices in rows.items())])


def table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Return lines with aligned columns: those numbered in `left` to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
