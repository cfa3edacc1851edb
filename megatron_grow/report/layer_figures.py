"""A picture of the sizes of a run's layers: small multiples, a line for each layer."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from megatron_grow.report.figures import GROWTH
from megatron_grow.report.layers import Curves, LayerHistory

_SHADES = colormaps["viridis"].resampled(256)
_DYING = "tab:red"
_OUTSIDE = "outside of the layers"


def layers_figure(history: LayerHistory, title: str) -> bytes:
    """A PNG with a row for each quantity and a panel for each tensor or place.

    Lines are from the first layer (dark) to the last (light). Growths are vertical lines; a layer
    that was told to die has a cross, and the panel says so.
    """
    rows = [row for row in _rows(history) if row[1]]
    columns = max(len(panels) for _, panels in rows)
    figure = Figure(figsize=(2.9 * columns + 1, 2.15 * len(rows) + 0.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (quantity, panels) in zip(axes, rows, strict=True):
        for axis in row[len(panels) :]:
            axis.set_axis_off()
        for axis, curves in zip(row, panels, strict=False):
            _draw(axis, history, curves, quantity)
        row[0].set_ylabel(quantity)
    for number, growth in enumerate(history.growths):
        axes[0, 0].annotate(
            growth.what.replace("->", "→").replace(", ", "\n"),
            (growth.step, 0.98 - 0.5 * (number % 2)),
            xycoords=("data", "axes fraction"),
            xytext=(2, 0),
            textcoords="offset points",
            va="top",
            color=GROWTH,
            fontsize=7,
            bbox={"color": "white", "alpha": 0.7, "pad": 1},
        )
    depth = int(history.depths.max())
    if depth > 1:
        scale = ScalarMappable(Normalize(0, depth - 1), _SHADES)
        bar = figure.colorbar(scale, ax=axes, aspect=60, fraction=0.02, pad=0.01)
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        bar.set_label("layer, of the deepest stage")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def _rows(history: LayerHistory) -> Iterator[tuple[str, list[list[Curves]]]]:
    """Panels by what they have on their vertical axis; one of all that is in no layer is last."""
    for quantity, curves in history.quantities.items():
        outside = [each for each in curves if not each.of_layers]
        panels = [[each] for each in curves if each.of_layers]
        yield quantity, panels + ([outside] if outside else [])


def _draw(axis: Axes, history: LayerHistory, panel: Sequence[Curves], quantity: str) -> None:
    axis.set_title(panel[0].name if panel[0].of_layers else _OUTSIDE, fontsize=8)
    for curves in panel:
        if curves.of_layers:
            _draw_layers(axis, history, curves)
        else:
            axis.plot(history.steps, _positive(curves.values), label=curves.name, linewidth=1.2)
    if not panel[0].of_layers:
        axis.legend(frameon=False, fontsize=6)
    for growth in history.growths:
        axis.axvline(growth.step, color=GROWTH, linestyle=":", linewidth=1.2)
    if quantity == "entropy":
        axis.set_ylim(bottom=0)
    elif any(np.isfinite(_positive(curves.values)).any() for curves in panel):
        _logarithmic(axis)
    axis.set_xlim(0, max(int(history.steps[-1]), 1))
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.tick_params(which="both", labelsize=7)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _logarithmic(axis: Axes) -> None:
    """Labels are plain numbers, as many as fit whatever the range is."""
    axis.set_yscale("log")
    least, most = axis.get_ylim()
    between: list[float] = [1, 2, 5] if most < 100 * least else [1]
    between = between if most > 5 * least else [1, 1.5, 2, 3, 4, 5, 6, 8]
    axis.yaxis.set_major_locator(LogLocator(subs=between))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _draw_layers(axis: Axes, history: LayerHistory, curves: Curves) -> None:
    values, deepest = _positive(curves.values), int(history.depths.max())
    for depth in sorted({*history.depths.tolist()} - {0}):
        # A line ends where layers come: they may come between others.
        of_stage = np.where(history.depths == depth, 1.0, np.nan)
        for layer in range(depth):
            shade = _SHADES(layer / max(deepest - 1, 1))
            width = 1.2 if depth <= 12 else 0.7
            axis.plot(history.steps, values[:, layer] * of_stage, color=shade, linewidth=width)
    for layer, step in curves.dying.items():
        row = int(np.searchsorted(history.steps, step))
        axis.plot(step, values[row, layer], "x", color=_DYING, markersize=5)
    if curves.dying:
        told = ", ".join(map(str, sorted(curves.dying)))
        axis.set_title(f"{curves.name}\ndying: {told}", fontsize=8, color=_DYING)


def _positive(values: np.ndarray) -> np.ndarray:
    """NaN for the zeros, of updates at a rate of 0, that a logarithm does not have."""
    return np.where(values > 0, values, np.nan)
