"""Pictures of a progressive run beside its fixed-size twin."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from megatron_grow.report.runs import Cost, Run
from megatron_grow.report.words import gap

Against = Literal["step"] | Cost
LABELS: dict[Against, str] = {
    "step": "Step",
    "flops_total": "FLOPs, whole model",
    "flops_block": "FLOPs, transformer layers only",
}
PROGRESSIVE, FIXED_SIZE, GROWTH = "tab:blue", "0.35", "tab:orange"


def figure_of(
    progressive: Run,
    fixed_size: Run,
    panels: list[Against],
    name: str = "loss",
    *,
    worth: bool = True,
) -> bytes:
    """A PNG of a validation loss or metric, one panel for each quantity on the horizontal axis.

    Growths are vertical lines; panels of FLOPs mark what the progressive run did not
    spend, which is a saving if its loss is ``worth`` the twin's. The curve of a
    run that diverged ends in a cross, and the legend says so.
    """
    figure = Figure(figsize=(5.4 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, against in zip(axes, panels, strict=True):
        _draw(panel, progressive, fixed_size, against, name, worth)
    axes[0].set_ylabel(f"Validation {name.replace('_', ' ')}")
    axes[0].set_ylim(*_range(progressive, fixed_size, name))
    axes[-1].legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def _draw(
    panel: Axes, progressive: Run, fixed_size: Run, against: Against, name: str, worth: bool
) -> None:
    for run, label, color in (
        (fixed_size, "fixed size", FIXED_SIZE),
        (progressive, "progressive", PROGRESSIVE),
    ):
        values = run.numbers[name]
        where, sound, marker = _positions(run, against), np.isfinite(values), "o"
        if run.diverged_at is not None:
            label, marker = f"{label}, diverged at step {run.diverged_at}", "x"
        panel.plot(where, values, color=color, label=label, linewidth=1.8)
        panel.plot(where[sound][-1:], values[sound][-1:], marker, color=color, markersize=5)
    for growth in progressive.growths:
        position = np.interp(growth.step, progressive.steps, _positions(progressive, against))
        panel.axvline(position, color=GROWTH, linestyle=":", linewidth=1.4)
        panel.annotate(
            growth.what.replace("->", "→").replace(", ", "\n"),
            (position, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            rotation=90,
            va="top",
            color=GROWTH,
            fontsize=9,
        )
    panel.set_xlabel(LABELS[against])
    panel.set_xlim(left=0)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    ours, twin = progressive.numbers[name][-1], fixed_size.numbers[name][-1]
    if not np.isfinite(ours + twin):
        return
    # What is said of the ends stands where no curve comes from.
    rises = _rises(fixed_size, name)
    value = max(ours, twin) if rises else min(ours, twin)
    beside: dict[str, Any] = {
        "xytext": (0, 7 if rises else -7),
        "textcoords": "offset points",
        "ha": "center",
        "va": "bottom" if rises else "top",
        "color": PROGRESSIVE,
        "fontsize": 9,
    }
    if against == "step":
        panel.annotate(gap(name, ours, twin, digits=1), (progressive.steps[-1], value), **beside)
        return
    spent, reference = progressive.flops[against][-1], fixed_size.flops[against][-1]
    if spent < reference:
        arrow = {"arrowstyle": "<->", "color": PROGRESSIVE, "shrinkA": 0, "shrinkB": 0}
        panel.annotate("", (spent, value), (reference, value), arrowprops=arrow)
        said = f"{1 - spent / reference:.0%} {'saved' if worth else 'fewer FLOPs'}"
        panel.annotate(said, ((spent + reference) / 2, value), **beside)


def _positions(run: Run, against: Against) -> NDArray:
    return run.steps if against == "step" else run.flops[against]


def _range(progressive: Run, fixed_size: Run, name: str) -> tuple[float, float]:
    """From below the lowest value to where the twin is after a twentieth of its steps.

    The first steps fall so far that the rest would be a flat line under them. Of what rises, from
    there to the highest value.
    """
    ours, twin = progressive.numbers[name], fixed_size.numbers[name]
    values = np.concatenate([ours, twin])
    if not np.isfinite(values).any():
        return 0.0, 1.0
    early = _early(fixed_size, name)
    ends = np.array([early, ours[-1]])
    ends = ends if np.isfinite(ends).any() else values
    bottom, top = np.nanmin(values), np.nanmax(ends)
    if _rises(fixed_size, name):
        bottom, top = np.nanmin(ends), np.nanmax(values)
    height = top - bottom or 1.0
    return bottom - 0.15 * height, bottom + 1.1 * height


def _rises(run: Run, name: str) -> bool:
    return bool(run.numbers[name][-1] > _early(run, name))


def _early(run: Run, name: str) -> float:
    """The value after a twentieth of a run."""
    return float(np.interp(run.steps[-1] / 20, run.steps, run.numbers[name]))
