"""Pictures of a progressive run beside its fixed-size twin."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from megatron_grow.report.comparison import Cost, Run

Against = Literal["step"] | Cost
LABELS: dict[Against, str] = {
    "step": "Step",
    "flops_total": "FLOPs, whole model",
    "flops_block": "FLOPs, transformer layers only",
}
PROGRESSIVE, FIXED_SIZE, GROWTH = "tab:blue", "0.35", "tab:orange"


def loss_figure(progressive: Run, fixed_size: Run, panels: list[Against]) -> bytes:
    """A PNG of validation losses, one panel for each quantity on the horizontal axis.

    Growths are vertical lines; panels of FLOPs mark what the progressive run saves. The curve of a
    run that diverged ends in a cross, and the legend says so.
    """
    figure = Figure(figsize=(5.4 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, against in zip(axes, panels, strict=True):
        _draw(panel, progressive, fixed_size, against)
    axes[0].set_ylabel("Validation loss")
    axes[0].set_ylim(*_loss_range(progressive, fixed_size))
    axes[-1].legend(frameon=False, loc="upper right")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def _draw(panel: Axes, progressive: Run, fixed_size: Run, against: Against) -> None:
    for run, name, color in (
        (fixed_size, "fixed size", FIXED_SIZE),
        (progressive, "progressive", PROGRESSIVE),
    ):
        where, sound = _positions(run, against), np.isfinite(run.val_loss)
        marker = "o"
        if run.diverged_at is not None:
            name, marker = f"{name}, diverged at step {run.diverged_at}", "x"
        panel.plot(where, run.val_loss, color=color, label=name, linewidth=1.8)
        panel.plot(where[sound][-1:], run.val_loss[sound][-1:], marker, color=color, markersize=5)
    for growth in progressive.growths:
        position = np.interp(growth.step, progressive.steps, _positions(progressive, against))
        panel.axvline(position, color=GROWTH, linestyle=":", linewidth=1.4)
        panel.annotate(
            f"{growth.from_layers} → {growth.to_layers} layers",
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
    if not np.isfinite(progressive.val_loss[-1] + fixed_size.val_loss[-1]):
        return
    if against == "step":
        _mark_gap(panel, progressive, fixed_size)
    else:
        _mark_saving(panel, progressive, fixed_size, against)


def _mark_gap(panel: Axes, progressive: Run, fixed_size: Run) -> None:
    """The final gap, under the points where both runs end."""
    panel.annotate(
        f"{progressive.val_loss[-1] / fixed_size.val_loss[-1] - 1:+.1%}",
        (progressive.steps[-1], min(progressive.val_loss[-1], fixed_size.val_loss[-1])),
        xytext=(0, -7),
        textcoords="offset points",
        ha="center",
        va="top",
        color=PROGRESSIVE,
        fontsize=9,
    )


def _mark_saving(panel: Axes, progressive: Run, fixed_size: Run, cost: Cost) -> None:
    """An arrow from the twin's end to the progressive run's, with what lies between."""
    spent, reference = progressive.flops[cost][-1], fixed_size.flops[cost][-1]
    if spent >= reference:
        return
    loss = min(progressive.val_loss[-1], fixed_size.val_loss[-1])
    arrow = {"arrowstyle": "<->", "color": PROGRESSIVE, "shrinkA": 0, "shrinkB": 0}
    panel.annotate("", (spent, loss), (reference, loss), arrowprops=arrow)
    panel.annotate(
        f"{1 - spent / reference:.0%} saved",
        ((spent + reference) / 2, loss),
        xytext=(0, -5),
        textcoords="offset points",
        ha="center",
        va="top",
        color=PROGRESSIVE,
        fontsize=9,
    )


def _positions(run: Run, against: Against) -> NDArray:
    return run.steps if against == "step" else run.flops[against]


def _loss_range(progressive: Run, fixed_size: Run) -> tuple[float, float]:
    """From below the lowest loss to where the twin is after a twentieth of its steps.

    The first steps fall so far that the rest would be a flat line under them.
    """
    losses = np.concatenate([progressive.val_loss, fixed_size.val_loss])
    if not np.isfinite(losses).any():
        return 0.0, 1.0
    early = np.interp(fixed_size.steps[-1] / 20, fixed_size.steps, fixed_size.val_loss)
    bottom, ends = np.nanmin(losses), np.array([early, progressive.val_loss[-1]])
    top = np.nanmax(ends if np.isfinite(ends).any() else losses)
    height = top - bottom or 1.0
    return bottom - 0.15 * height, bottom + 1.1 * height
