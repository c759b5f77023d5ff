"""Names of latent groups in pictures and tables."""

from __future__ import annotations

from nvae.models.hierarchy import HierarchicalVAE, LatentGroup


def first_groups_name(model: HierarchicalVAE, count: int) -> str:
    """Return a name of the first `count` groups, such as "3 of 8", or with a context "context + 3 of 8" or "none"."""
    above = model.groups_above_scales
    if not above:
        return f"{count} of {len(model.groups)}"
    return f"{model.levels[0].name} + {count - above} of {len(model.groups) - above}" if count else "none"


def position_name(group: LatentGroup, row: int, column: int) -> str:
    """Return the name of a position, counted from 1, such as "row 2, column 3" or "coefficient 2, 3"."""
    return f"row {row + 1}, column {column + 1}" if group.info.is_spatial else f"coefficient {row + 1}, {column + 1}"
