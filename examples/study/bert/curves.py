"""The picture of the study: validation losses of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_grow.report.runs import Run

SHARED = ("full", "half", "swe_f", "swe_m", "swe_a", "swe_long", "swe_reset", "swe_2x4", "swe_4x2")
GROWN = ("full", "depth", "ffn", "length", "compound", "compound_carry")
DEEP = ("deep", "deep_swe_f", "deep_post", "deep_post_swe_f")
BASELINES = {"full": "0.6", "half": "0.0", "deep": "0.0", "deep_post": "0.6"}


def draw(runs: Mapping[str, Run], path: Path) -> None:
    """Write a PNG: sharing against steps, growth against FLOPs, 24 layers against steps.

    Args:
        runs: those that have finished, by name. One of growth has its twin beside it, as a cross
            where it ended.
        path: of the picture.
    """
    figure = Figure(figsize=(16, 4.6), layout="constrained")
    sharing, growth, deep = figure.subplots(1, 3)
    for panel, title, names in (
        (sharing, "Shared at first, in half of the steps", SHARED),
        (deep, "24 layers", DEEP),
    ):
        for name in names:
            if name in runs:
                _curve(panel, runs[name].steps, runs[name], name)
        _finish(panel, title, "Step")
    whole = runs["full"].flops["flops_total"][-1]
    for name in GROWN:
        if name in runs:
            run = runs[name]
            color = _curve(growth, run.flops["flops_total"] / whole, run, name)
            twin = runs.get(f"{name}_twin")
            if twin:
                end = twin.flops["flops_total"][-1] / whole
                growth.plot(end, twin.numbers["masked_lm_loss"][-1], "x", color=color)
    _finish(growth, "Small at first (x: finished full-size run of as many FLOPs)", "FLOPs of full")
    sharing.set_ylabel("Validation loss of masked tokens")
    figure.savefig(path, dpi=130)


def _curve(panel: Axes, where: object, run: Run, name: str) -> str:
    losses = run.numbers["masked_lm_loss"]
    label = f"{name}  {losses[-1]:.3f}"
    (line,) = panel.plot(where, losses, label=label, color=BASELINES.get(name), linewidth=1.4)
    return str(line.get_color())


def _finish(panel: Axes, title: str, label: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(label)
    panel.set_ylim(2.9, 4.4)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
