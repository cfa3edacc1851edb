"""Pictures of runs that grow beside finished fixed-size runs of several lengths, over seeds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

from megatron_grow.report.fair import line_of
from megatron_grow.report.figures import FIXED_SIZE, LABELS, Against
from megatron_grow.report.groups import Group
from megatron_grow.report.runs import COSTS, Cost, Run
from megatron_grow.report.words import at_equal_loss, plural

_TAB20 = [to_hex(color) for color in colormaps["tab20"](range(20))]
# Dark ones, then light ones; grey is for runs of fixed size.
COLORS = [color for color in (*_TAB20[::2], *_TAB20[1::2]) if color not in ("#7f7f7f", "#c7c7c7")]


def curves(grown: Sequence[Group], lengths: Sequence[Group]) -> bytes:
    """A PNG of validation losses against steps and against FLOPs of the whole model.

    A line is the mean over seeds, the band around it goes from the lowest to the highest.
    """
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    panels: list[Against] = ["step", "flops_total"]
    axes = figure.subplots(1, len(panels), sharey=True)
    shades = np.linspace(0.75, 0.25, len(lengths))
    styles = [(group, str(shade), "--") for group, shade in zip(lengths, shades, strict=True)]
    styles += [(group, COLORS[i % len(COLORS)], "-") for i, group in enumerate(grown)]
    for panel, against in zip(axes, panels, strict=True):
        for group, color, line in styles:
            _draw_curve(panel, group, against, color, line)
        panel.set_xlim(left=0)
        _dress(panel, LABELS[against])
    axes[0].set_ylabel("Validation loss")
    axes[0].set_ylim(*_range([group for group, _, _ in styles]))
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9
    )
    return _png(figure)


def loss_over_compute(
    grown: Sequence[Group], lengths: Sequence[Group], summary: dict[str, Any]
) -> bytes:
    """A PNG of final losses over the logarithm of compute, by both definitions of FLOPs.

    The line joins finished fixed-size runs; from each grown run an arrow goes to where the line has
    the same loss, if it has. Bars go from the lowest to the highest seed.
    """
    figure = Figure(figsize=(11.5, 4.6 + 0.22 * (1 + len(grown))), layout="constrained")
    axes = figure.subplots(1, len(COSTS), sharey=True)
    for panel, cost in zip(axes, COSTS, strict=True):
        line = line_of(lengths, cost)
        panel.plot(*zip(*line, strict=True), color=FIXED_SIZE, linewidth=1.5, zorder=1)
        for group in lengths:
            _draw_point(panel, group, cost, FIXED_SIZE, "s", None)
        panel.plot([], [], "s-", color=FIXED_SIZE, label=f"fixed size, {_lengths(lengths)}")
        for i, (group, found) in enumerate(zip(grown, summary["grown"], strict=True)):
            color, equal = COLORS[i % len(COLORS)], found["equal_loss"][cost]
            label = f"{group.name}: {at_equal_loss(equal)}"
            _draw_point(panel, group, cost, color, "o", label)
            if equal["flops"] is not None:
                loss = found["val_loss"]["mean"]
                ends = [(at, loss) for at in (equal["flops"], group.flops(cost))]
                arrow = {"arrowstyle": "->", "color": color, "shrinkA": 3, "shrinkB": 0}
                panel.annotate("", *ends, arrowprops=arrow)
        panel.set_xscale("log")
        _label_some(panel, [group.flops(cost) for group in (*grown, *lengths)])
        _dress(panel, LABELS[cost])
        panel.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    axes[0].set_ylabel("Final validation loss")
    return _png(figure)


def _label_some(panel: Axes, flops: Sequence[float]) -> None:
    """So many numbers of a logarithmic axis that they do not lie on each other."""
    near = max(flops) < 5 * min(flops)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if near else (1, 2, 5)))
    panel.xaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(inf, inf)))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _draw_curve(panel: Axes, group: Group, against: Against, color: str, line: str) -> None:
    label = group.name
    if len(group.runs) > 1:
        label += f", {plural(len(group.runs), 'seed')}"
    if len(group.sound) < len(group.runs):
        label += f", {len(group.runs) - len(group.sound)} diverged"
    curve = group.curve or group.runs[0]
    where = _positions(curve, against)
    panel.plot(where, curve.val_loss, line, color=color, label=label, linewidth=1.6)
    panel.plot(where[-1:], curve.val_loss[-1:], "o", color=color, markersize=4)
    losses = [run.val_loss for run in group.sound]
    if len(losses) > 1 and all(np.array_equal(run.steps, curve.steps) for run in group.sound):
        low, high = np.min(losses, axis=0), np.max(losses, axis=0)
        panel.fill_between(where, low, high, color=color, alpha=0.2, linewidth=0)


def _draw_point(
    panel: Axes, group: Group, cost: Cost, color: str, marker: str, label: str | None
) -> None:
    loss = group.loss
    if loss is None:
        panel.plot([], [], "x", color=color, label=label)
        return
    bars = [[loss.mean - loss.min], [loss.max - loss.mean]]
    panel.errorbar(
        [group.flops(cost)],
        [loss.mean],
        yerr=bars if loss.n > 1 else None,
        fmt=marker,
        color=color,
        capsize=3,
        markersize=5,
        label=label,
    )


def _lengths(lengths: Sequence[Group]) -> str:
    steps = [f"{group.steps:,}" for group in lengths]
    return f"{', '.join(steps)} steps"


def _positions(run: Run, against: Against) -> Any:
    return run.steps if against == "step" else run.flops[against]


def _range(groups: Sequence[Group]) -> tuple[float, float]:
    """From below the lowest final loss to the longest run's loss after a twentieth of its steps."""
    finals = [group.loss.mean for group in groups if group.loss]
    longest = max((group.curve or group.runs[0] for group in groups), key=lambda run: run.last_step)
    early = float(np.interp(longest.last_step / 20, longest.steps, longest.val_loss))
    top, bottom = np.nanmax([early, *finals]), min(finals, default=0.0)
    height = top - bottom or 1.0
    return bottom - 0.08 * height, bottom + 1.1 * height


def _dress(panel: Axes, label: str) -> None:
    panel.set_xlabel(label)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()
