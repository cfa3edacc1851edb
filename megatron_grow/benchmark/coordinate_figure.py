"""A picture of a coordinate check."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from megatron_grow.benchmark.coordinates import MOMENTS, Sweep

_COLORS = {
    "embedding": "tab:gray",
    "attention": "tab:blue",
    "mlp": "tab:orange",
    "residual_stream": "tab:green",
    "logits": "tab:red",
}


def figure_of(sweeps: Sequence[Sweep]) -> bytes:
    """A PNG: a row of panels for each sweep, one for each moment, both axes logarithmic.

    Where hyper-parameters transfer, lines of changes do not rise.
    """
    figure = Figure(figsize=(3.2 * len(MOMENTS), 2.9 * len(sweeps)), layout="constrained")
    panels = figure.subplots(len(sweeps), len(MOMENTS), squeeze=False, sharey=True)
    for row, sweep in zip(panels, sweeps, strict=True):
        for panel, (moment, title) in zip(row, MOMENTS.items(), strict=True):
            for quantity in (name for when, name in sweep.measured if when == moment):
                values, color = sweep.values(moment, quantity), _COLORS.get(quantity)
                label = quantity.replace("_", " ")
                panel.plot(sweep.sizes, values, "o-", color=color, markersize=3, label=label)
            panel.set(xscale="log", yscale="log", title=title, xlabel=sweep.along)
            panel.set_xticks(sweep.sizes, [str(size) for size in sweep.sizes])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        row[0].set_ylabel("root mean square")
    handles = panels[0][-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", frameon=False, fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()
