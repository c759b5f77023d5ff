"""Draw the KL of every latent group as a chart."""

from __future__ import annotations

from pathlib import Path

from nvae.evaluation.likelihood import Evaluation
from nvae.models.hierarchy import HierarchicalVAE

MAX_TICKS = 20


def draw_kl_chart(evaluation: Evaluation, model: HierarchicalVAE, path: Path, metadata: dict[str, str]) -> None:
    """Write a PNG file: a bar per latent group with the height of its KL, colored by its resolution."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = len(model.groups)
    active, units = evaluation.active_units_per_group, evaluation.units_per_group
    figure = Figure(figsize=(max(7.0, 2.5 + 0.32 * groups), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="latent group, top first", ylabel="KL, nats per image")
    first = 0
    for i, level in enumerate(model.levels):
        indices = range(first, first + level.groups)
        first += level.groups
        kls = [evaluation.kl_per_group[index] for index in indices]
        label = f"{level.name + ' ' if level.name else ''}{level.resolution} x {level.resolution}: {sum(kls):.1f} nats"
        if active is not None:
            label += f", {sum(active[n] for n in indices):,} of {sum(units[n] for n in indices):,} units active"
        color = colormaps["viridis"]((i + 0.5) / len(model.levels))
        axes.bar([index + 1 for index in indices], kls, color=color, label=label)
    axes.set_xticks(range(1, groups + 1, max(1, groups // MAX_TICKS)))
    axes.grid(axis="y", alpha=0.3)
    axes.margins(y=0.1 + 0.07 * len(model.levels))  # room for the legend above the bars
    axes.legend(fontsize="small", loc="upper right")
    figure.suptitle(_title(evaluation), fontsize="medium")
    figure.savefig(path, dpi=110, format="png", metadata=metadata)


def _title(evaluation: Evaluation) -> str:
    bound, bits = evaluation.log_likelihood, evaluation.log_likelihood_bits
    title = f"ELBO {evaluation.elbo.mean:.2f} nats, {evaluation.elbo_bits.mean:.3f} bits/dim"
    name = "log p(x) at least" if evaluation.is_bound else "published protocol, not a bound:"
    if evaluation.samples > 1 or not evaluation.is_bound:
        title += f"\n{name} {bound.mean:.2f} nats, {bits.mean:.3f} bits/dim ({evaluation.samples} samples)"
    return title
