"""Check the arguments of public functions: counts, seeds, temperatures, images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from nvae.models.distributions import Noise
from nvae.models.hierarchy import HierarchicalVAE
from nvae.system.errors import InvalidValueError, UserError

# One number, or several, top first: one per scale, or one per latent group. A level above the scales, a context, may
# have a number of its own before those of the scales; without that, the level has the number of the top scale.
Factors = float | Sequence[float]
MAX_FACTOR = 10  # of standard deviations or variances; far more than any model has learned
USUAL_TEMPERATURE = 2
MAX_EQUAL = 5  # numbers that are written one by one


def per_group(model: HierarchicalVAE, value: Factors, name: str) -> list[float]:
    """Return one number per latent group, top first.

    name: what the numbers are called in the message, such as "temperature". Raises InvalidValueError.
    """
    numbers = _per_level_or_group(model, value, name)
    if len(numbers) == len(model.groups):
        return numbers
    return [number for number, level in zip(numbers, model.levels, strict=True) for _ in range(level.groups)]


def with_number_above_scales(model: HierarchicalVAE, value: Factors, number: float, name: str) -> list[float]:
    """Return `value` as one number per level, or per latent group, with `number` for what stands above the scales.

    name: what the numbers are called in the message, such as "temperature". Raises UserError, also for a model without
    a context.
    """
    if not model.groups_above_scales:
        raise UserError(f"the model has no context: leave out the {name} of the context.")
    numbers = _per_level_or_group(model, value, name)
    above = len(model.levels) - len(model.scales)
    if len(numbers) != len(model.levels):
        above = model.groups_above_scales
    return _per_level_or_group(model, [number] * above + numbers[above:], name)


def _per_level_or_group(model: HierarchicalVAE, value: Factors, name: str) -> list[float]:
    given: Any = [value] if isinstance(value, Real) else value
    if not isinstance(given, Sequence) or not all(map(_is_factor, given)):
        raise InvalidValueError(name, repr(value), "a finite number from 0 on, or several")
    if name == "temperature" and (highest := max(given, default=0)) > MAX_FACTOR:
        advice = f"Did you mean {highest / 100:g}?" if highest <= 200 else ""
        raise InvalidValueError(name, f"{highest:g}", f"at most {MAX_FACTOR}", advice)
    numbers, scales, levels, groups = list(map(float, given)), len(model.scales), len(model.levels), len(model.groups)
    if len(numbers) == 1:
        return numbers * levels
    if len(numbers) == scales:
        return numbers[:1] * (levels - scales) + numbers
    if len(numbers) in (levels, groups):
        return numbers
    resolutions = ", ".join(f"{level.resolution}x{level.resolution}" for level in model.scales)
    expected = f"one number, one for each of the {scales} scales of the latents ({resolutions})"
    expected += f", one more, for the {model.levels[0].name}, first" if levels > scales else ""
    raise InvalidValueError(
        name, f"{len(numbers)} numbers", f"{expected}, or one for each of the {groups} latent groups"
    )


def _is_factor(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf


def format_values(values: Factors, separator: str = ",") -> str:
    """Write one number, or several, as on the command line: more than MAX_EQUAL equal ones as 0.8x20."""
    parts = []
    for text, same in groupby(f"{value:g}" for value in (values if isinstance(values, Sequence) else [values])):
        count = len(list(same))
        parts += [text] * count if count <= MAX_EQUAL else [f"{text}x{count}"]
    return separator.join(parts)


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return an integer from `least` to `most`. Raises InvalidValueError."""
    if not _is_integer(value) or value < least or (most is not None and value > most):
        raise InvalidValueError(name, value, f"an integer from {least} {'on' if most is None else f'to {most}'}")
    return int(value)


def check_seeds(seeds: Any) -> list[int]:
    """Return one or more seeds as a list of integers. Raises InvalidValueError."""
    values = seeds.tolist() if isinstance(seeds, Tensor) else seeds
    values = list(values) if hasattr(values, "__iter__") else []
    if not values or not all(_is_integer(seed) and seed >= 0 for seed in values):
        raise InvalidValueError("seeds", seeds, "one or more integers from 0 on")
    return [int(seed) for seed in values]


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise InvalidValueError for a value that is not one of those allowed."""
    if value not in allowed:
        raise InvalidValueError(name, value, " or ".join(allowed))


def check_images(model: HierarchicalVAE, images: Any) -> Tensor:
    """Return float images (N, C, S, S) in [0, 1] of the model's size, on its device. Raises InvalidValueError."""
    _check_shape(model, "images", images)
    if not images.is_floating_point():
        raise InvalidValueError("images", str(images.dtype), "floating-point values in [0, 1]; divide uint8 by 255")
    if not (images.min() >= 0 and images.max() <= 1):
        raise InvalidValueError("images", f"values from {images.min():g} to {images.max():g}", "values in [0, 1]")
    return images.to(model.device, torch.float32)


def check_images_u8(model: HierarchicalVAE, images_u8: Any, name: str = "images_u8") -> None:
    """Raise InvalidValueError for anything but uint8 images (N, C, S, S) of the model's size."""
    _check_shape(model, name, images_u8)
    if images_u8.dtype != torch.uint8:
        raise InvalidValueError(name, str(images_u8.dtype), "uint8 values from 0 to 255")


def _check_shape(model: HierarchicalVAE, name: str, images: Any) -> None:
    shape = (model.config.image_channels, model.config.input_dimension, model.config.input_dimension)
    if not isinstance(images, Tensor) or tuple(images.shape[1:]) != shape or len(images) == 0:
        got = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InvalidValueError(name, got, f"a tensor of shape (N, {', '.join(map(str, shape))}), N from 1")


def check_noise(model: HierarchicalVAE, noise: Noise, count: int | None = None) -> None:
    """Raise InvalidValueError for anything but one (B, *noise_shape) per latent group; count: the expected B."""
    got = [tuple(group.shape) for group in noise]
    expected = [(len(noise[0]) if count is None else count, *shape) for shape in model.noise_shapes]
    if got != expected:
        raise InvalidValueError("noise", f"shapes {got}", f"shapes {expected}, one tensor per latent group")
