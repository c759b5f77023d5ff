"""Names of latent groups and of positions in them, for texts, tables and charts."""

from __future__ import annotations

from itertools import accumulate

from nvae.models.hierarchy import HierarchicalVAE, LatentGroup, Level


def level_name(level: Level) -> str:
    """Return the name of a level, such as "7x7" or "context 7x7"."""
    return f"{level.name + ' ' if level.name else ''}{level.resolution}x{level.resolution}"


def group_name(model: HierarchicalVAE, index: int) -> str:
    """Return a group's number, counted from 1, and its level, such as "2: 7x7" or "1: context 7x7"."""
    return f"{index + 1}: {level_name(model.groups[index].level)}"


def group_names(model: HierarchicalVAE) -> list[str]:
    """Return the names of all latent groups, top first."""
    return [group_name(model, index) for index in range(len(model.groups))]


def groups_per_level(model: HierarchicalVAE) -> list[range]:
    """Return the indices of the latent groups of every level, top first."""
    ends = list(accumulate(level.groups for level in model.levels))
    return [range(end - level.groups, end) for level, end in zip(model.levels, ends, strict=True)]


def first_groups_name(model: HierarchicalVAE, count: int) -> str:
    """Return a name of the first `count` groups, such as "3 of 8", or with a context "context + 3 of 8" or "none"."""
    above = model.groups_above_scales
    if not above:
        return f"{count} of {len(model.groups)}"
    return f"{model.levels[0].name} + {count - above} of {len(model.groups) - above}" if count else "none"


def position_name(group: LatentGroup, row: int, column: int) -> str:
    """Return the name of a position, counted from 1, such as "row 2, column 3" or "coefficient 2, 3"."""
    return f"row {row + 1}, column {column + 1}" if group.info.is_spatial else f"coefficient {row + 1}, {column + 1}"
