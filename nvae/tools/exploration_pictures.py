"""What an exploration looks like: overviews of all groups, heat maps of one group's positions, a table."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from nvae.inference.exploration import BasePoint, PositionEffects, mean_change
from nvae.models.hierarchy import HierarchicalVAE
from nvae.summary import table
from nvae.tools.grids import enlarged, grid, heat_maps, near_square

CELL = 128
ONE_ROW = 5  # cells that still stand in one


def group_name(model: HierarchicalVAE, group: int) -> str:
    """Number, as people count, and resolution of a group."""
    resolution = model.groups[group].level.resolution
    return f"{group + 1}: {resolution}x{resolution}"


def overview(model: HierarchicalVAE, view: BasePoint, images: list[Tensor], difference: bool) -> Image.Image:
    """The unchanged image, then those with each group jammed, (jams, C, H, W) per group.

    One jam a group stands in a near-square; several, or with their difference from the unchanged image as heat maps, in
    a row per group. All heat maps have one scale.
    """
    names = [group_name(model, group) for group in range(len(images))]
    if len(images[0]) == 1 and not difference:
        cells = torch.cat([view.image, *images])
        columns = len(cells) if len(cells) <= ONE_ROW else near_square(len(cells))
        return grid(cells, columns, captions=["unchanged", *names])
    rows = images
    if difference:
        changes = [(found - view.image).abs().mean(1) for found in images]
        brightest = max(change.max().item() for change in changes)
        rows = [
            torch.cat([_color(found), heat_maps(change, brightest)])
            for found, change in zip(images, changes, strict=True)
        ]
    columns = len(rows[0])
    first = [_color(view.image) if difference else view.image, *_blank(rows[0], columns - 1)]
    return grid(torch.cat([*first, *rows]), columns, cell=CELL, labels=["unchanged", *names])


def positions_picture(view: BasePoint, found: PositionEffects, padding: int) -> Image.Image:
    """Above: the image, where in it the group matters, which of its positions do. Below: the strongest ones alone."""
    size = view.image.shape[-1]
    where, which = found.where[None], enlarged(found.influence[None], size + 2 * padding)
    which = which[:, padding : padding + size, padding : padding + size]  # a model's margin has latents, too
    above = [
        _color(view.image),
        heat_maps(where, where.max().item()),
        heat_maps(which, which.max().item()),
    ]
    columns = max(len(above), len(found.images))
    blank = _blank(above[0], columns - len(above))
    below = [found.images, *_blank(found.images, columns - len(found.images))]
    maps = [heat_maps(found.changes, found.changes.max().item()), *_blank(above[0], columns - len(found.images))]
    captions = ["unchanged", "where it matters", "its positions", *[""] * (columns - len(above))]
    captions += [f"row {row + 1}, column {column + 1}" for row, column in found.strongest]
    captions += [""] * (3 * columns - len(captions))
    cells = torch.cat([*above, *blank, *map(_color, below), *maps])
    return grid(cells, columns, cell=CELL, captions=captions)


def change_table(
    model: HierarchicalVAE, view: BasePoint, images: list[Tensor], kl_per_group: list[float] | None = None
) -> str:
    """How much every group changes the image, and how much it says about images, if the model knows."""
    rows = [("latent group, top first", "resolution", "mean change", "KL on data, nats")]
    for group, found in enumerate(images):
        side = model.groups[group].level.resolution
        kl = "not measured" if kl_per_group is None else f"{kl_per_group[group]:.2f}"
        rows.append((str(group + 1), f"{side} x {side}", f"{mean_change(found, view.image):.4f}", kl))
    return "\n".join(table(rows))


def _color(images: Tensor) -> Tensor:
    return images.cpu().expand(-1, 3, -1, -1)


def _blank(like: Tensor, count: int) -> list[Tensor]:
    return [torch.ones_like(like[:1])] * count
