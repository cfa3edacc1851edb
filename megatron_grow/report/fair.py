"""Runs that grow beside finished fixed-size runs of several lengths, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from typing import Any

from megatron_grow.report.comparison import (
    head_start,
    lost_in_growing,
    mixing_time,
    percent_above,
    percent_below,
)
from megatron_grow.report.groups import Group, Spread
from megatron_grow.report.runs import COSTS, Cost
from megatron_grow.rules.curves import reached


def assess(
    grown: Sequence[Group],
    fixed_size: Sequence[Group],
    *,
    tolerance: float = 0.01,
    cost_tolerance: float = 0.02,
) -> dict[str, Any]:
    """The numbers of ``summary.json`` (``docs/comparing.md``), of means over seeds.

    Args:
        grown: what is compared.
        fixed_size: finished runs of one recipe, each of another length.
        tolerance: relative difference of validation losses at which runs count as mixed.
        cost_tolerance: relative difference of FLOPs at which they count as equal.
    """
    lengths = sorted(fixed_size, key=lambda group: group.steps)
    return {
        "tolerance": tolerance,
        "cost_tolerance": cost_tolerance,
        "grown": [
            {
                **_group(group),
                "growths": [vars(growth) for growth in group.runs[0].growths],
                "equal_steps": _equal_steps(group, lengths),
                "equal_flops": {
                    cost: _equal_flops(group, lengths, cost, cost_tolerance) for cost in COSTS
                },
                "equal_loss": {cost: equal_loss(group, lengths, cost) for cost in COSTS},
                **_beside_its_curve(group, lengths, tolerance),
            }
            for group in grown
        ],
        "fixed_size": [_group(group) for group in lengths],
    }


def twin_of_steps(group: Group, lengths: Sequence[Group]) -> Group | None:
    """The fixed-size runs of as many steps."""
    return next((fixed for fixed in lengths if fixed.steps == group.steps), None)


def equal_loss(group: Group, lengths: Sequence[Group], cost: Cost) -> dict[str, Any]:
    """What finished fixed-size runs cost that reach the loss of ``group``, and what it saves.

    Between their lengths, on straight lines of mean loss over the logarithm of compute. ``flops``
    is None, and ``beyond`` says on which side, where none of them comes to that loss: nothing is
    extrapolated, and one of ``lengths`` gives no line. ``saved_percent_of_seeds`` has what the
    seeds with the highest and with the lowest loss save.
    """
    line = line_of(lengths, cost)
    if group.loss is None or not line:
        nothing = dict.fromkeys(("flops", "saved_percent", "beyond"))
        return {**nothing, "saved_percent_of_seeds": [None, None], "lengths": len(line)}
    where, losses = [log(flops) for flops, _ in line], [loss for _, loss in line]
    found = [
        reached(where, losses, loss) for loss in (group.loss.mean, group.loss.max, group.loss.min)
    ]
    saved = [at and percent_below(group.flops(cost), exp(at)) for at in found]
    beyond = "below" if group.loss.mean < min(losses) else "above"
    return {
        "flops": found[0] and exp(found[0]),
        "saved_percent": saved[0],
        "saved_percent_of_seeds": saved[1:],
        "lengths": len(line),
        "beyond": beyond if found[0] is None else None,
    }


def line_of(lengths: Sequence[Group], cost: Cost) -> list[tuple[float, float]]:
    """FLOPs and mean final losses of finished runs, cheapest first; those that diverged are out."""
    points = [(fixed.flops(cost), fixed.loss.mean) for fixed in lengths if fixed.loss]
    return sorted(point for point in points if point[0] > 0)


def _group(group: Group) -> dict[str, Any]:
    loss = group.loss
    return {
        "name": group.name,
        "output_dirs": [str(run.output_dir) for run in group.runs],
        "seeds": [run.seed for run in group.runs],
        "diverged": len(group.runs) - len(group.sound),
        "steps": group.steps,
        "val_loss": loss and loss.json(),
        "consumed_tokens": group.runs[0].tokens,
        **{cost: group.flops(cost) for cost in COSTS},
        "wall_seconds": group.wall_seconds,
    }


def _equal_steps(group: Group, lengths: Sequence[Group]) -> dict[str, Any] | None:
    twin = twin_of_steps(group, lengths)
    if twin is None:
        return None
    return {
        "with": twin.name,
        **_gap(group, twin),
        "fewer_percent": {
            cost: percent_below(group.flops(cost), twin.flops(cost)) for cost in COSTS
        },
        "less_time_percent": percent_below(group.wall_seconds, twin.wall_seconds),
    }


def _equal_flops(
    group: Group, lengths: Sequence[Group], cost: Cost, tolerance: float
) -> dict[str, Any] | None:
    """Against the finished run whose cost is nearest; None where it is not near enough."""
    spent = group.flops(cost)
    if not lengths or not spent:
        return None
    nearest = min(lengths, key=lambda fixed: abs(fixed.flops(cost) - spent))
    costs_more = percent_above(spent, nearest.flops(cost))
    if costs_more is None or abs(costs_more) > 100 * tolerance:
        return None
    return {
        "with": nearest.name,
        "steps": nearest.steps,
        "costs_more_percent": costs_more,
        **_gap(group, nearest),
    }


def _gap(group: Group, other: Group) -> dict[str, Any]:
    """How far its mean loss is above another's, and whether all seeds agree which is lower."""
    ours, theirs = group.loss, other.loss
    if ours is None or theirs is None:
        return {"gap_percent": None, "clear": None}
    return {
        "gap_percent": percent_above(ours.mean, theirs.mean),
        "clear": ours.clear_of(theirs),
    }


def _beside_its_curve(group: Group, lengths: Sequence[Group], tolerance: float) -> dict[str, Any]:
    """What the curve of the twin says, of each seed: head start and mixing time, in steps."""
    twin = twin_of_steps(group, lengths)
    curve = twin.curve if twin else None
    if curve is None:
        unknown = ("head_start_steps", "lost_in_growing_steps", "mixing_time_steps")
        return {**dict.fromkeys(unknown), "mixed": 0}
    lost = Spread.of(lost_in_growing(run, curve) for run in group.sound)
    starts = Spread.of(head_start(run, curve) for run in group.sound)
    times = Spread.of(mixing_time(run, curve, tolerance) for run in group.sound)
    return {
        "head_start_steps": starts and starts.json(),
        "lost_in_growing_steps": lost and lost.json(),
        "mixing_time_steps": times and times.json(),
        "mixed": times.n if times else 0,
    }
