"""Pictures of an exploration: overviews of all groups, heat maps of one group's positions, a table."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from nvae.inference.exploration import BasePoint, PositionEffects, mean_change
from nvae.models.hierarchy import HierarchicalVAE
from nvae.summary import table
from nvae.tools.grids import color_bar, enlarged, grid, heat_maps, near_square, stacked

CELL = 128
MAX_CELLS_IN_ONE_ROW = 5
SCALE = "mean absolute change of a pixel (range 0 to 1), one scale for all maps"
JAM_ROWS = 2  # of strongest positions in a picture of one group


def group_name(model: HierarchicalVAE, group: int) -> str:
    """Return a group's number, counted from 1, and its resolution."""
    resolution = model.groups[group].level.resolution
    return f"{group + 1}: {resolution}x{resolution}"


def overview(
    model: HierarchicalVAE, view: BasePoint, images: list[Tensor], difference: bool, original: Tensor | None = None
) -> Image.Image:
    """Draw the unchanged image, then the images with each group jammed, (jams, C, H, W) per group.

    difference: add a heat map of the change right of every jammed image. original: the picture (C, H, W) in [0, 1]
    that `view` reconstructs, drawn before the reconstruction. One jam per group without heat maps is drawn as a square,
    anything else as a row per group.
    """
    names = [group_name(model, group) for group in range(len(images))]
    base = {"unchanged": view.image[0]} if original is None else {"picture": original, "reconstruction": view.image[0]}
    start = torch.stack([image.cpu() for image in base.values()])
    start_label = "unchanged" if original is None else "picture, model"
    if len(images[0]) == 1 and not difference:
        cells = torch.cat([start, *(group_images.cpu() for group_images in images)])
        columns = len(cells) if len(cells) <= MAX_CELLS_IN_ONE_ROW else near_square(len(cells))
        return grid(cells, columns, captions=[*base, *names])
    if not difference:
        rows, columns = [_color(group_images) for group_images in images], max(len(images[0]), len(base))
        cells = torch.cat([_row(_color(start), columns), *(_row(row, columns) for row in rows)])
        return grid(cells, columns, cell=CELL, labels=[start_label, *names])
    changes = [(group_images - view.image).abs().mean(1) for group_images in images]
    brightest = max(change.max().item() for change in changes)
    rows = [
        torch.stack([_color(group_images), heat_maps(change, brightest)], dim=1).flatten(0, 1)
        for group_images, change in zip(images, changes, strict=True)
    ]
    columns = len(rows[0])
    cells = torch.cat([_row(_color(start), columns), *rows])
    picture = grid(cells, columns, cell=CELL, labels=[start_label, *names])
    return stacked([picture, color_bar(brightest, SCALE, picture.width, CELL)])


def shown_positions(positions: int, with_original: bool) -> int:
    """Return how many positions of a group `positions_picture` shows, so that no cell stays empty."""
    columns = 4 if with_original else 3
    return min(positions, columns) if positions < JAM_ROWS * columns else JAM_ROWS * columns


def positions_picture(
    view: BasePoint, positions: PositionEffects, padding: int, original: Tensor | None = None
) -> Image.Image:
    """Draw the image, where in it the group matters, and the influence of each position; below, the strongest ones.

    Below each image with one position jammed is a heat map of its change. padding: of the model's images, whose margin
    has latents too. original: the picture that `view` reconstructs, drawn first.
    """
    size = view.image.shape[-1]
    where, influence = positions.where[None], enlarged(positions.influence[None], size + 2 * padding)
    influence = influence[:, padding : padding + size, padding : padding + size]
    base = {"unchanged": view.image[0]} if original is None else {"picture": original, "reconstruction": view.image[0]}
    above = [*(_color(image[None]) for image in base.values())]
    above += [heat_maps(values, values.max().item()) for values in (where, influence)]
    maximum, strongest = positions.changes.max().item(), _color(positions.images)
    maps = heat_maps(positions.changes, maximum)
    names = [f"row {row + 1}, column {column + 1}" for row, column in positions.strongest]
    captions = [*base, f"where (max {where.max():.2g})", f"positions (max {influence.max():.2g})"]
    columns = len(above)
    rows = [torch.cat(above)]
    for first in range(0, len(names), columns):
        part = slice(first, first + columns)
        rows += [_row(strongest[part], columns), _row(maps[part], columns)]
        captions += [*_padded(names[part], columns), *_padded(["change"] * len(names[part]), columns)]
    picture = grid(torch.cat(rows), columns, cell=CELL, captions=captions)
    bar = color_bar(maximum, "change: mean absolute change of a pixel (range 0 to 1)", picture.width, CELL)
    return stacked([picture, bar])


def change_table(
    model: HierarchicalVAE, view: BasePoint, images: list[Tensor], kl_per_group: list[float] | None
) -> str:
    """Return a table: how much each group changes the image, and its KL on data if the model file knows it."""
    rows = [("latent group, top first", "resolution", "mean change", "KL on data, nats")]
    for group, group_images in enumerate(images):
        side = model.groups[group].level.resolution
        kl = "not measured" if kl_per_group is None else f"{kl_per_group[group]:.2f}"
        rows.append((str(group + 1), f"{side} x {side}", f"{mean_change(group_images, view.image):.4f}", kl))
    return "\n".join(table(rows))


def _color(images: Tensor) -> Tensor:
    return images.cpu().expand(-1, 3, -1, -1)


def _row(cells: Tensor, columns: int) -> Tensor:
    """Fill a row with white cells."""
    return torch.cat([cells, torch.ones_like(cells[:1]).expand(columns - len(cells), -1, -1, -1)])


def _padded(texts: list[str], columns: int) -> list[str]:
    return texts + [""] * (columns - len(texts))
