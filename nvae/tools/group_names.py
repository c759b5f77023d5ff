"""Names of latent groups in pictures and tables."""

from __future__ import annotations

from nvae.models.hierarchy import HierarchicalVAE, LatentGroup


def first_groups_name(model: HierarchicalVAE, count: int) -> str:
    """Return a name of the first `count` groups, such as "3 of 8", or with a context "context + 3 of 8" or "none"."""
    if model.context is None:
        return f"{count} of {len(model.groups)}"
    return f"context + {count - 1} of {len(model.groups) - 1}" if count else "none"


def position_name(group: LatentGroup, row: int, column: int) -> str:
    """Return the name of a position, counted from 1, such as "row 2, column 3" or "coefficient 2, 3"."""
    return f"coefficient {row + 1}, {column + 1}" if group.has_coefficients else f"row {row + 1}, column {column + 1}"
