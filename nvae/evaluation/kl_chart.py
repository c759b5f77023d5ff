"""Draw bars per latent group, and the KL of every group as a chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvae.evaluation.likelihood import Evaluation
from nvae.models.group_names import group_names, groups_per_level, level_name
from nvae.models.hierarchy import HierarchicalVAE

MAX_GROUPS = 20  # with a tick for each
MAX_TICKS = 8  # of more groups
MAX_WIDTH = 14.0  # inches
MAX_NAMES = 8  # of groups with their level below the bars, and of levels in one column of the legend


def draw_bars(axes: Any, model: HierarchicalVAE, values: list[float]) -> list[range]:
    """Draw a bar per latent group, colored by its level. Returns the indices of each level's groups."""
    from matplotlib import colormaps

    names, levels = group_names(model), groups_per_level(model)
    for i, indices in enumerate(levels):
        color = colormaps["viridis"]((i + 0.5) / len(levels))
        axes.bar(indices, [values[index] for index in indices], color=color)
    ticks = range(0, len(names), 1 if len(names) <= MAX_GROUPS else -(-len(names) // MAX_TICKS))
    axes.set_xticks(ticks, [names[i] if len(names) <= MAX_NAMES else str(i + 1) for i in ticks])
    axes.set_xlabel("latent group, top first")
    axes.grid(axis="y", alpha=0.3)
    return levels


def draw_kl_chart(evaluation: Evaluation, model: HierarchicalVAE, path: Path, metadata: dict[str, str]) -> None:
    """Write a PNG file: a bar per latent group with the height of its KL."""
    from matplotlib.figure import Figure

    active, units = evaluation.active_units_per_group, evaluation.units_per_group
    width = min(max(7.0, 2.5 + 0.32 * len(model.groups)), MAX_WIDTH)
    figure = Figure(figsize=(width, 4.5), layout="constrained")
    axes = figure.add_subplot(ylabel="KL, nats per image")
    levels, labels = draw_bars(axes, model, evaluation.kl_per_group), []
    for level, indices in zip(model.levels, levels, strict=True):
        label = f"{level_name(level)}: {sum(evaluation.kl_per_group[i] for i in indices):.1f} nats"
        if active is not None:
            label += f", {sum(active[i] for i in indices):,} of {sum(units[i] for i in indices):,} units active"
        labels.append(label)
    columns = 1 if len(levels) <= MAX_NAMES else 2
    axes.margins(y=0.1 + 0.07 * -(-len(levels) // columns))  # room for the legend above the bars
    axes.legend(axes.containers, labels, fontsize="small", loc="upper right", ncols=columns)
    figure.suptitle(_title(evaluation), fontsize="medium")
    figure.savefig(path, dpi=110, format="png", metadata=metadata)


def _title(evaluation: Evaluation) -> str:
    bound, bits = evaluation.log_likelihood, evaluation.log_likelihood_bits
    title = f"ELBO {evaluation.elbo.mean:.2f} nats, {evaluation.elbo_bits.mean:.3f} bits/dim"
    if not evaluation.is_normalized:
        title += ", not a bound"
    published = evaluation.estimator == "analytic_kl"
    name = "published protocol, not a bound:" if published else "log p(x)" + " at least" * evaluation.is_bound
    if evaluation.samples > 1 or published:
        title += f"\n{name} {bound.mean:.2f} nats, {bits.mean:.3f} bits/dim ({evaluation.samples} samples)"
    return title
