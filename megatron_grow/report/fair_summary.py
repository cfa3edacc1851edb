"""The report of runs over seeds and of the finished fixed-size runs that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_grow.inputs.errors import UserError
from megatron_grow.report.fair import assess
from megatron_grow.report.fair_figures import curves, loss_over_compute
from megatron_grow.report.files import write_files
from megatron_grow.report.groups import check_one_recipe, grouped
from megatron_grow.report.runs import COSTS, Cost, Run, load_run
from megatron_grow.report.words import at_equal_loss, is_worth, saved

FIGURES = ("loss.png", "loss_over_compute.png")
_PARTS: dict[Cost, str] = {"flops_total": "whole model", "flops_block": "layers"}
_COLUMNS = 4
"""Of a table, so that it is not too wide."""


def write_fair_report(
    runs: Sequence[Path],
    against: Sequence[Path],
    output: Path,
    *,
    tolerance: float = 0.01,
    cost_tolerance: float = 0.02,
) -> dict[str, Any]:
    """Compare runs over seeds, write the report to ``output`` and return the summary.

    Args:
        runs: output_dirs of what is compared.
        against: of the fixed-size runs; empty: those of ``runs`` that never grew.
        output: directory for summary.json and the pictures; made if it does not exist.
        tolerance: relative difference of validation losses at which runs count as mixed.
        cost_tolerance: relative difference of FLOPs at which runs count as equal.

    Raises:
        UserError: runs that cannot be read or compared, or an ``output`` that cannot be written.
    """
    ours, theirs = [load_run(run) for run in runs], [load_run(run) for run in against]
    if not theirs:
        ours, theirs = _apart(ours)
    grown, fixed_size = grouped(ours), grouped(theirs)
    check_one_recipe(fixed_size)
    fixed_size.sort(key=lambda group: group.steps)
    summary = assess(grown, fixed_size, tolerance=tolerance, cost_tolerance=cost_tolerance)
    pictures = (curves(grown, fixed_size), loss_over_compute(grown, fixed_size, summary))
    write_files(output, summary, dict(zip(FIGURES, pictures, strict=True)))
    return summary


def _apart(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Those that grew, and those that did not."""
    grown, fixed_size = (
        [run for run in runs if bool(run.growths) is grew] for grew in (True, False)
    )
    if not grown or not fixed_size:
        raise UserError(
            f"all of these {len(runs)} runs {'grew' if grown else 'kept their size'}; name those "
            "with which the others are compared behind --against"
        )
    return grown, fixed_size


def fair_tables(summary: dict[str, Any]) -> list[Table]:
    """The summary for a reader."""
    groups = summary["grown"]
    beside = [groups[i : i + _COLUMNS] for i in range(0, len(groups), _COLUMNS)]
    tables = [_grown(some, summary["tolerance"]) for some in beside]
    return [_fixed_size(summary["fixed_size"]), *tables]


def _fixed_size(groups: list[dict[str, Any]]) -> Table:
    table = Table(title="Finished runs that they are compared with")
    headings = ("steps", "seeds", "final validation loss", "FLOPs", "of the layers", "time")
    for heading in headings:
        table.add_column(heading, justify="right")
    for group in groups:
        table.add_row(
            f"{group['steps']:,}",
            f"{len(group['seeds'])}",
            _loss(group),
            *(f"{group[cost]:.3g}" for cost in COSTS),
            f"{group['wall_seconds']:.0f} s",
        )
    return table


def _grown(groups: list[dict[str, Any]], tolerance: float) -> Table:
    table = Table(title="Compared with them")
    table.add_column("")
    for group in groups:
        table.add_column(group["name"], justify="right")
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "seeds": lambda group: f"{len(group['seeds'])}",
        "growths": lambda group: "\n".join(
            f"{growth['what']} at {growth['step']:,}" for growth in group["growths"]
        ),
        "final validation loss": _loss,
        "at equal steps: loss": lambda group: _gap(group["equal_steps"]),
        **{
            f"  FLOPs, {part}": partial(_unspent, cost=cost, tolerance=tolerance)
            for cost, part in _PARTS.items()
        },
        "  training time": partial(_unspent, cost=None, tolerance=tolerance),
        **{
            f"at equal FLOPs, {part}: loss": partial(_equal_flops, cost=cost)
            for cost, part in _PARTS.items()
        },
        **{
            f"at equal loss: FLOPs, {part}": partial(_equal_loss, cost=cost)
            for cost, part in _PARTS.items()
        },
        "head start at the growth, steps": lambda group: _steps(group["head_start_steps"], "-"),
        "  lost in growing": lambda group: _steps(group["lost_in_growing_steps"], "-"),
        f"steps until within {100 * tolerance:g} %": _mixing,
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(group) for group in groups))
    return table


def _loss(group: dict[str, Any]) -> str:
    loss, lines = group["val_loss"], []
    if loss:
        lines.append(f"{loss['mean']:.4f}")
        if loss["std"] is not None:
            lines[0] += f" ± {loss['std']:.4f}"
        if loss["n"] > 1:
            lines.append(f"{loss['min']:.4f} .. {loss['max']:.4f}")
    if group["diverged"]:
        lines.append(f"{group['diverged']} of {len(group['seeds'])} diverged")
    return "\n".join(lines)


def _unspent(group: dict[str, Any], cost: Cost | None, tolerance: float) -> str:
    """FLOPs or, without ``cost``, time beside the fixed-size runs of as many steps."""
    found = group["equal_steps"]
    if found is None:
        return "-"
    percent = found["fewer_percent"][cost] if cost else found["less_time_percent"]
    return saved(percent, worth=is_worth(found["gap_percent"], tolerance))


def _equal_flops(group: dict[str, Any], cost: Cost) -> str:
    found = group["equal_flops"][cost]
    return f"{_gap(found)}, {found['steps']:,} steps" if found else _gap(found)


def _equal_loss(group: dict[str, Any], cost: Cost) -> str:
    return at_equal_loss(group["equal_loss"][cost])


def _gap(found: dict[str, Any] | None) -> str:
    if found is None:
        return "no such run"
    if found["gap_percent"] is None:
        return "-"
    spread = {None: "", True: "", False: " (within the spread)"}[found["clear"]]
    return f"{found['gap_percent']:+.2f} %{spread}"


def _steps(spread: dict[str, Any] | None, none: str) -> str:
    if spread is None:
        return none
    over = f" ({spread['min']:.0f} .. {spread['max']:.0f})" if spread["n"] > 1 else ""
    return f"{spread['mean']:.0f}{over}"


def _mixing(group: dict[str, Any]) -> str:
    if group["equal_steps"] is None:
        return "-"
    text = _steps(group["mixing_time_steps"], "not reached")
    sound = len(group["seeds"]) - group["diverged"]
    return f"{text}, {group['mixed']} of {sound}" if 0 < group["mixed"] < sound else text
