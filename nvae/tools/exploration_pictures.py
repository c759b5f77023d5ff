"""Pictures of an exploration: overviews of all groups, heat maps of one group's positions, a table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor

from nvae.inference.exploration import BasePoint, PositionEffects, mean_change
from nvae.models.group_names import group_names, level_name, position_name
from nvae.models.hierarchy import HierarchicalVAE
from nvae.summary import group_table
from nvae.tools.grids import color_bar, enlarged, filled, grid, heat_maps, near_square, stacked, with_rows_below

CELL = 128
MAX_CELLS_IN_ONE_ROW = 5
MANY_GROUPS = 30  # up to this number, a row per group is a picture that people can look at
MAX_SIDE = 4000  # pixels of a picture of many groups
CHANGE = "change: mean absolute change of a pixel (range 0 to 1)"
SCALE = "mean absolute change of a pixel (range 0 to 1), one scale for all maps"
NEW_CONTEXT = "new context"
JAM_ROWS = 2  # of strongest positions in a picture of one group


def overview(
    model: HierarchicalVAE,
    views: Sequence[BasePoint],
    images: Sequence[Sequence[Tensor]],
    difference: bool,
    originals: Tensor | None = None,
    new_contexts: Tensor | None = None,
) -> Image.Image:
    """Draw the unchanged images, then the images with each group jammed, (jams, C, H, W) per base point and group.

    difference: add a heat map of the change right of every jammed image. originals: the pictures (N, C, H, W) in [0, 1]
    that the base points reconstruct, drawn before the reconstructions. new_contexts: the pseudo-inputs (jams, C, H, W)
    of the jammed context, drawn after its images. One base point with one jam per group and no heat maps is drawn as a
    square, anything else as a row per group, with columns for each base point. More than MANY_GROUPS groups are drawn
    beside each other, and each level starts a new row.
    """
    names, several, many = group_names(model), len(views) > 1, len(model.groups) > MANY_GROUPS
    levels = [level_name(group.level) for group in model.groups]
    references = [[view.image] * len(names) for view in views]
    if new_contexts is not None and views[0].pseudo_input is not None:
        names.insert(1, NEW_CONTEXT)
        levels.insert(1, levels[0])
        images = [[of_base[0], new_contexts, *of_base[1:]] for of_base in images]
        contexts = [view.pseudo_input for view in views if view.pseudo_input is not None]
        references = [
            [*of_base[:1], context, *of_base[1:]] for of_base, context in zip(references, contexts, strict=True)
        ]
    bases = [_base_cells(view, None if originals is None else originals[i]) for i, view in enumerate(views)]
    starts = [torch.stack([image.cpu() for image in base.values()]) for base in bases]
    jams = len(images[0][0])
    if jams == 1 and not difference and not several and not many:
        cells = torch.cat([starts[0], *(group_images.cpu() for group_images in images[0])])
        columns = len(cells) if len(cells) <= MAX_CELLS_IN_ONE_ROW else near_square(len(cells))
        return grid(cells, columns, captions=[*bases[0], *names])
    labels = list(bases[0]) if several else [", ".join(bases[0]).replace("reconstruction", "model")]
    columns = jams * (2 if difference else 1)  # of a group and a base point
    changes = [
        [(jammed - reference).abs().mean(1) for jammed, reference in zip(*of_base, strict=True)]
        for of_base in zip(images, references, strict=True)
    ]
    of_groups = [
        change for of_base in changes for name, change in zip(names, of_base, strict=True) if name != NEW_CONTEXT
    ]
    brightest = max(change.max().item() for change in of_groups)  # the context's own change is larger

    def row_of(group_images: Tensor, change: Tensor) -> Tensor:
        row = _color(group_images)
        return torch.stack([row, heat_maps(change, brightest)], 1).flatten(0, 1) if difference else row

    heads = [_color(starts[0])]
    if several:
        heads = [
            _color(torch.cat([filled(cell[None], columns) for cell in same])) for same in zip(*starts, strict=True)
        ]
    of_bases = [list(map(row_of, *of_base)) for of_base in zip(images, changes, strict=True)]
    rows = [torch.cat(of_group) for of_group in zip(*of_bases, strict=True)]
    if many:
        picture = _by_level(heads, labels, rows, names, levels)
    else:
        width = max(map(len, (*heads, *rows)))
        cells = torch.cat([filled(row, width) for row in (*heads, *rows)])
        picture = grid(cells, width, cell=CELL, labels=[*labels, *names])
    return stacked([picture, color_bar(brightest, SCALE, picture.width, CELL)]) if difference else picture


def _by_level(
    heads: list[Tensor], labels: list[str], rows: list[Tensor], names: list[str], levels: list[str]
) -> Image.Image:
    """Draw the rows of groups, (N, C, S, S) each, as blocks beside each other; every level starts a new row.

    heads, labels: rows above all levels, and their labels. names, levels: of the groups; a name starts with the group's
    number. The picture is as wide as high, or a little wider, and reduced to at most MAX_SIDE.
    """
    by_level = [list(same) for _, same in groupby(zip(levels, names, rows, strict=True), itemgetter(0))]
    block = len(rows[0])
    per_row = near_square(*map(len, by_level), width=block)
    columns = per_row * block
    cells, captions = [filled(head, columns) for head in heads], [""] * columns * len(heads)
    for blocks in by_level:
        for first in range(0, len(blocks), per_row):
            part = blocks[first : first + per_row]
            cells.append(filled(torch.cat([row for _, _, row in part]), columns))
            captions += [text for _, name, _ in part for text in (name.partition(":")[0], *[""] * (block - 1))]
            captions += [""] * (columns - block * len(part))
            labels = [*labels, "" if first else blocks[0][0]]
    picture = grid(torch.cat(cells), columns, CELL, labels, captions, block=block if block > 1 else columns)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return picture


def _base_cells(view: BasePoint, original: Tensor | None, with_context: bool = True) -> dict[str, Tensor]:
    """Return the cells that a picture starts with, (C, H, W), by their captions."""
    cells = {"unchanged": view.image[0]} if original is None else {"picture": original, "reconstruction": view.image[0]}
    return cells | ({"context": view.pseudo_input[0]} if with_context and view.pseudo_input is not None else {})


def positions_columns(with_original: bool, of_context: bool) -> int:
    """Return the columns of `positions_picture`, for a group that is a context or another one."""
    return 3 + with_original + of_context


def shown_positions(positions: int, columns: int) -> int:
    """Return how many positions of a group `positions_picture` shows, so that no cell stays empty."""
    return min(positions, columns) if positions < JAM_ROWS * columns else JAM_ROWS * columns


def positions_picture(
    model: HierarchicalVAE, view: BasePoint, group: int, positions: PositionEffects, original: Tensor | None = None
) -> Image.Image:
    """Draw the image, where in it the group matters, and the influence of each position; below, the strongest ones.

    Below each image with one position jammed are a heat map of its change and, for the context, the pseudo-input.
    original: the picture that `view` reconstructs, drawn first.
    """
    group_of_model, of_context = model.groups[group], positions.pseudo_inputs is not None
    is_spatial = group_of_model.info.is_spatial
    size, padding = view.image.shape[-1], model.padding
    if is_spatial:  # the margin of a padded image has latents too
        influence = enlarged(positions.influence[None], size + 2 * padding)
        influence = influence[:, padding : padding + size, padding : padding + size]
    else:
        influence = enlarged(positions.influence[None], size)
    where, base = positions.where[None], _base_cells(view, original, with_context=of_context)
    above = [*(_color(image[None]) for image in base.values())]
    above += [heat_maps(values, values.max().item()) for values in (where, influence)]
    maximum = positions.changes.max().item()
    names = [position_name(group_of_model, *position) for position in positions.strongest]
    below = [(_color(positions.images), names), (heat_maps(positions.changes, maximum), ["change"] * len(names))]
    if positions.pseudo_inputs is not None:
        below.append((_color(positions.pseudo_inputs), [NEW_CONTEXT] * len(names)))
    columns = positions_columns(original is not None, of_context)
    cells, captions = with_rows_below(columns, *below)
    titles = [*base, f"where (max {where.max():.2g})", f"influence (max {influence.max():.2g})"]
    picture = grid(torch.cat([*above, cells]), columns, cell=CELL, captions=[*titles, *captions])
    of_what = "position" if is_spatial else "coefficient (row, column)"
    bar = color_bar(maximum, f"{CHANGE}; influence: the same, of each {of_what}", picture.width, CELL)
    return stacked([picture, bar])


def change_table(
    model: HierarchicalVAE,
    views: Sequence[BasePoint],
    images: Sequence[Sequence[Tensor]],
    kl_per_group: list[float] | None,
) -> str:
    """Return a table: how much each group changes the images, and its KL on data if the model file knows it.

    images: (jams, C, H, W) per base point and group. The change of a level is the mean of its groups, the KL their sum.
    """
    of_bases = [
        [mean_change(jams, view.image) for jams in of_base] for of_base, view in zip(images, views, strict=True)
    ]
    changes = list(map(fmean, zip(*of_bases, strict=True)))

    def cells(groups: Sequence[int]) -> tuple[str, str]:
        kl = "not measured" if kl_per_group is None else f"{sum(kl_per_group[i] for i in groups):.2f}"
        return f"{fmean(changes[i] for i in groups):.4f}", kl

    return "\n".join(group_table(model, ("mean change", "KL on data, nats"), cells))


def _color(images: Tensor) -> Tensor:
    return images.cpu().expand(-1, 3, -1, -1)
