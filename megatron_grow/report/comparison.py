"""A progressive run against its fixed-size twin: at equal step and at equal FLOPs.

The twin is a run of the progressive one's target from start to end, for as many steps on the same
stream of tokens. Where stages have smaller batches, as many steps are fewer tokens, and the summary
says so.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from megatron_grow.inputs.errors import UserError
from megatron_grow.report.runs import COSTS, Cost, Run
from megatron_grow.rules.curves import reached


def compare(
    progressive: Run, fixed_size: Run, tolerance: float = 0.01, cost_tolerance: float = 0.02
) -> dict[str, Any]:
    """The numbers of ``summary.json``; percentages are relative to the fixed-size run.

    Of a run that diverged there is no final loss, and nothing that it saved.

    Args:
        progressive: the run that grew.
        fixed_size: its twin.
        tolerance: relative difference of validation losses at which the runs count as mixed.
        cost_tolerance: relative difference of FLOPs at which both count as having cost as much.

    Raises:
        UserError: the last evaluations are at different steps, and neither run diverged.
    """
    last_steps = [int(run.steps[-1]) for run in (progressive, fixed_size)]
    sound = progressive.diverged_at is None and fixed_size.diverged_at is None
    if sound and last_steps[0] != last_steps[1]:
        raise UserError(
            f"{progressive.output_dir} was last evaluated at step {last_steps[0]}, "
            f"{fixed_size.output_dir} at step {last_steps[1]}; compare runs of as many steps, or "
            "finished runs of others by --against"
        )
    return {
        "progressive": _final(progressive),
        "fixed_size": _final(fixed_size),
        "final_step": max(last_steps),
        "final_gap_percent": percent_above(progressive.val_loss[-1], fixed_size.val_loss[-1]),
        "others": {
            name: {
                "progressive": _number(progressive.numbers[name][-1]),
                "fixed_size": _number(fixed_size.numbers[name][-1]),
            }
            for name in others(progressive, fixed_size)
        },
        "savings_percent": {
            cost: percent_below(progressive.flops[cost][-1], fixed_size.flops[cost][-1])
            if sound
            else None
            for cost in COSTS
        },
        "wall_time_ratio": progressive.wall_seconds / fixed_size.wall_seconds if sound else None,
        "growths": [vars(growth) for growth in progressive.growths],
        "tolerance": tolerance,
        "mixing_time_steps": mixing_time(progressive, fixed_size, tolerance),
        "head_start_steps": head_start(progressive, fixed_size),
        "equal_flops": {
            cost: equal_flops(progressive, fixed_size, cost, cost_tolerance) for cost in COSTS
        },
    }


def others(progressive: Run, fixed_size: Run) -> list[str]:
    """What both runs measured besides their loss, in the order of their rows."""
    return [name for name in progressive.numbers if name in fixed_size.numbers and name != "loss"]


def mixing_time(progressive: Run, fixed_size: Run, tolerance: float) -> int | None:
    """Steps from the last growth to the first evaluation that the twin does not beat by more.

    "More" is ``tolerance``, relative, at the same step (Bu 2025); None if there is no such
    evaluation. Its resolution is the evaluation interval.
    """
    if not progressive.growths:
        return None
    start = progressive.growths[-1].step
    twin = dict(zip(fixed_size.steps.tolist(), fixed_size.val_loss.tolist(), strict=True))
    for step, loss in zip(progressive.steps.tolist(), progressive.val_loss, strict=True):
        if step > start and step in twin and loss <= (1 + tolerance) * twin[step]:
            return step - start
    return None


def head_start(progressive: Run, fixed_size: Run) -> float | None:
    """Steps of a run from nothing that all before the last growth was worth.

    Asked at the last evaluation before the rate begins to fall: at which step did the twin have
    the loss that the grown run has there? The steps since the growth are subtracted. None for a run
    that did not grow before, whose rate is never constant, or whose loss its twin had at no step.
    """
    if not progressive.growths:
        return None
    grown_at = progressive.growths[-1].step
    constant = min(progressive.constant_until, fixed_size.constant_until)
    since = (progressive.steps > grown_at) & (progressive.steps <= constant)
    if not since.any():
        return None
    step, loss = progressive.steps[since][-1], progressive.val_loss[since][-1]
    at = _step_of(fixed_size, loss, constant)
    return None if at is None else float(at - (step - grown_at))


def lost_in_growing(progressive: Run, fixed_size: Run) -> float | None:
    """Steps of a run from nothing that the last growth itself lost; below 0 if it gained some.

    At which step did the twin have the loss from before the growth? The head start is subtracted.
    None where there is none.
    """
    start = head_start(progressive, fixed_size)
    if start is None:
        return None
    before = progressive.val_loss[progressive.steps == progressive.growths[-1].step]
    if not before.size:
        return None
    at = _step_of(fixed_size, before[0], fixed_size.constant_until)
    return None if at is None else float(at - start)


def _step_of(run: Run, loss: float, until: int) -> float | None:
    """At which step, up to ``until``, a run had a loss first."""
    before = run.steps <= until
    return reached(run.steps[before].tolist(), run.val_loss[before].tolist(), loss)


def equal_flops(
    progressive: Run, fixed_size: Run, cost: Cost, tolerance: float
) -> dict[str, float | str | None]:
    """Both validation losses when as much was spent as the cheaper run spent in all.

    Those at their ends if they cost as much, within ``tolerance``, relative. If not, the dearer
    run's is interpolated between its evaluations, None before its first, and ``not_decayed`` names
    that run: it is met in the middle of its learning-rate schedule. That flatters the cheaper one,
    whose rate has decayed, so nothing follows from the gap.
    """
    runs = {"progressive": progressive, "fixed_size": fixed_size}
    spent = {name: float(run.flops[cost][-1]) for name, run in runs.items()}
    budget = min(spent.values())
    dearer = [name for name, flops in spent.items() if flops > (1 + tolerance) * budget]
    losses = {
        name: _loss_at(run, cost, budget if name in dearer else spent[name])
        for name, run in runs.items()
    }
    ours, theirs = losses.values()
    return {
        "flops": budget,
        **{f"{name}_val_loss": loss for name, loss in losses.items()},
        "gap_percent": None if ours is None or theirs is None else percent_above(ours, theirs),
        "not_decayed": next(iter(dearer), None),
    }


def _loss_at(run: Run, cost: Cost, flops: float) -> float | None:
    if run.flops[cost][0] > flops:
        return None
    return _number(np.interp(flops, run.flops[cost], run.val_loss))


def _final(run: Run) -> dict[str, Any]:
    return {
        "output_dir": str(run.output_dir),
        "val_loss": _number(run.val_loss[-1]),
        "diverged_at": run.diverged_at,
        "skipped_iters": run.skipped_iters,
        "consumed_tokens": run.tokens,
        **{cost: float(run.flops[cost][-1]) for cost in COSTS},
        "wall_seconds": run.wall_seconds,
    }


def _number(value: float) -> float | None:
    """None for what JSON cannot hold."""
    return float(value) if math.isfinite(value) else None


def percent_above(value: float, reference: float) -> float | None:
    """How far ``value`` is above ``reference``; None for what JSON cannot hold."""
    return _number(100 * (value / reference - 1)) if reference else None


def percent_below(value: float, reference: float) -> float | None:
    """None for a reference of 0: the transformer layers of a model without any."""
    return float(100 * (1 - value / reference)) if reference else None
