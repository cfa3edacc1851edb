"""The report of a progressive run and its twin: ``summary.json``, pictures, a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_grow.report.comparison import compare, others
from megatron_grow.report.figures import Against, figure_of
from megatron_grow.report.files import write_files
from megatron_grow.report.runs import load_run
from megatron_grow.report.words import gap, is_worth, saved, value

FIGURES: dict[str, list[Against]] = {
    "loss.png": ["step", "flops_total"],
    "loss_vs_flops.png": ["flops_total", "flops_block"],
}
"""Of the loss; of each other number that both runs have there is one like the first."""


def write_report(
    run_a: Path,
    run_b: Path,
    output: Path,
    *,
    tolerance: float = 0.01,
    cost_tolerance: float = 0.02,
) -> dict[str, Any]:
    """Compare two runs, write the report to ``output`` and return the summary.

    The progressive run is the one that grew; if both did or neither, it is ``run_a``.

    Args:
        run_a: output_dir of a run.
        run_b: output_dir of the other.
        output: directory for summary.json and the pictures; made if it does not exist.
        tolerance: relative difference of validation losses at which the runs count as mixed.
        cost_tolerance: relative difference of FLOPs at which both count as having cost as much.

    Raises:
        UserError: runs that cannot be read or compared, or an ``output`` that cannot be written.
    """
    progressive, fixed_size = load_run(run_a), load_run(run_b)
    if fixed_size.growths and not progressive.growths:
        progressive, fixed_size = fixed_size, progressive
    summary = compare(progressive, fixed_size, tolerance, cost_tolerance)
    worth = is_worth(summary["final_gap_percent"], tolerance)
    files = {
        file: figure_of(progressive, fixed_size, panels, worth=worth)
        for file, panels in FIGURES.items()
    }
    files |= {
        f"{name}.png": figure_of(progressive, fixed_size, FIGURES["loss.png"], name, worth=worth)
        for name in others(progressive, fixed_size)
    }
    write_files(output, summary, files)
    return summary


def figures_of(summary: dict[str, Any]) -> list[str]:
    """The names of the pictures that belong to a summary."""
    return [*FIGURES, *(f"{name}.png" for name in summary["others"])]


def summary_table(summary: dict[str, Any]) -> Table:
    """The summary for a reader."""
    ours, twin = summary["progressive"], summary["fixed_size"]
    grown = ", ".join(f"{g['what']} at step {g['step']}" for g in summary["growths"])
    table = Table(title=f"{summary['final_step']} steps; grown {grown or 'never'}")
    for heading in ("", "progressive", "fixed size", "difference"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row(
        "final validation loss",
        _final_loss(ours),
        _final_loss(twin),
        _gap(summary["final_gap_percent"]),
    )
    for name, found in summary["others"].items():
        both = found["progressive"], found["fixed_size"]
        table.add_row(
            f"final {name.replace('_', ' ')}",
            *(value(name, number) for number in both),
            gap(name, *both),
        )
    tokens = 100 * (ours["consumed_tokens"] / twin["consumed_tokens"] - 1)
    table.add_row(
        "training tokens",
        f"{ours['consumed_tokens']:.3g}",
        f"{twin['consumed_tokens']:.3g}",
        f"{tokens:+.1f} %",
    )
    worth = is_worth(summary["final_gap_percent"], summary["tolerance"])
    labels = {"flops_total": "whole model", "flops_block": "layers only"}
    for cost, label in labels.items():
        table.add_row(
            f"FLOPs, {label}",
            f"{ours[cost]:.3g}",
            f"{twin[cost]:.3g}",
            saved(summary["savings_percent"][cost], worth=worth),
        )
    ratio = summary["wall_time_ratio"]
    table.add_row(
        "training time",
        f"{ours['wall_seconds']:.0f} s",
        f"{twin['wall_seconds']:.0f} s",
        saved(None if ratio is None else 100 * (1 - ratio), worth=worth),
    )
    for cost, label in labels.items():
        equal = summary["equal_flops"][cost]
        table.add_row(
            f"loss at equal FLOPs, {label}",
            *(
                _loss(equal[f"{run}_val_loss"], decayed=equal["not_decayed"] != run)
                for run in ("progressive", "fixed_size")
            ),
            # One met in the middle of its schedule is no run of that cost.
            _gap(None if equal["not_decayed"] else equal["gap_percent"]),
        )
    mixing = summary["mixing_time_steps"]
    table.add_row(
        f"steps until within {100 * summary['tolerance']:g} %",
        "not reached" if mixing is None else f"{mixing}",
        "",
        "",
    )
    start = summary["head_start_steps"]
    if start is not None:
        table.add_row("head start at the growth", f"{start:.0f} steps", "", "")
    skipped = [run["skipped_iters"] for run in (ours, twin)]
    if any(skipped):
        table.add_row("steps without an update", *map(str, skipped), "")
    return table


def _final_loss(run: dict[str, Any]) -> str:
    if run["diverged_at"] is not None:
        return f"diverged at step {run['diverged_at']}"
    return f"{run['val_loss']:.4f}"


def _gap(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:+.2f} %"


def _loss(value: float | None, decayed: bool) -> str:
    return "-" if value is None else f"{value:.4f}{'' if decayed else ', not decayed yet'}"
