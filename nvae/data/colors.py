"""Random changes of the colors and the sharpness of training images, a factor for every image.

The operations and the distributions of their factors are those of torchvision's ColorJitter and RandomAdjustSharpness.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision rounds it
MIDDLE = 5 / 13  # of the 3x3 kernel of the blur; the other eight numbers share the rest


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply images (B, C, S, S) in [0, 1] by factors (B, 1, 1, 1)."""
    return (images * factors).clamp(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Move images (B, C, S, S) in [0, 1] away from the mean of their gray images; the factor 0 gives this mean."""
    return torch.lerp(to_gray(images).mean((1, 2, 3), keepdim=True), images, factors).clamp(0, 1)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Move images (B, C, S, S) in [0, 1] away from their gray images; the factor 0 gives the gray images."""
    return torch.lerp(to_gray(images), images, factors).clamp(0, 1)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of images (B, 3, S, S) in [0, 1], (B, 1, 1, 1) of a whole turn; gray images stay as they are.

    The hue, the saturation and the value are those of HSV.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    divisor = torch.where(chroma > 0, chroma, 1)
    by_green = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    hue = torch.where(value == red, (green - blue) / divisor, by_green)  # in sixths of a turn
    places = (hue + 6 * turns + hue.new_tensor([5.0, 3.0, 1.0]).view(3, 1, 1)) % 6
    return value - chroma * torch.minimum(places, 4 - places).clamp(0, 1)


def adjust_sharpness(images: Tensor, factor: float) -> Tensor:
    """Move images (B, C, S, S) in [0, 1] away from their blurred images, but for the pixels at the edges."""
    channels = images.shape[1]
    kernel = images.new_full((channels, 1, 3, 3), (1 - MIDDLE) / 8)
    kernel[..., 1, 1] = MIDDLE
    blurred = functional.conv2d(images, kernel, padding=1, groups=channels)
    result, inner = images.clone(), (..., slice(1, -1), slice(1, -1))
    result[inner] = torch.lerp(blurred[inner], images[inner], factor).clamp(0, 1)
    return result


def to_gray(images: Tensor) -> Tensor:
    """Return the gray images (B, 1, S, S) of images (B, C, S, S)."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def sharpen_some(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Adjust the sharpness of each of the images (B, C, S, S) with probability 1/2. generator: of the CPU."""
    chosen = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(chosen[:, None, None, None], adjust_sharpness(images, factor), images)


def jitter_colors(images: Tensor, widths: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """Adjust brightness, contrast, saturation and hue of images (B, C, S, S), for each image in a random order.

    widths: of the four distributions; a factor is from [1 - width, 1 + width], a turn of the hue from [-width,
    width]. generator: of the CPU, so that the same images give the same result on any device.
    """
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    unit = 2 * torch.rand(len(images), 4, generator=generator) - 1
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]) + torch.tensor(widths) * unit
    order = torch.rand(len(images), 4, generator=generator).argsort(1)
    result = images.clone()
    for place in range(4):
        for number, operation in enumerate(operations):
            rows = (order[:, place] == number).nonzero().squeeze(1)
            chosen = rows.to(images.device)
            its_factors = factors[rows, number].to(images.device).view(-1, 1, 1, 1)
            result[chosen] = operation(result[chosen], its_factors)
    return result
