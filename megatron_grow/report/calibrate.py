"""When to grow, measured by short runs: the fixed size, and one that grows right after warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from megatron_grow.config.run import RunConfig
from megatron_grow.data.tokenizers.vocabulary import with_vocabulary
from megatron_grow.inputs.errors import UserError
from megatron_grow.report.comparison import mixing_time
from megatron_grow.report.groups import grouped
from megatron_grow.report.runs import Run
from megatron_grow.report.twin import twin_of
from megatron_grow.rules.calibration import Calibration

_EVALUATIONS = 40
"""In a short run, at least: mixing time is known to the steps between two of them."""


def proxies(config: RunConfig, steps: int, output: Path, seed: int) -> dict[str, RunConfig]:
    """The two short runs that calibrate a run, by their names.

    They take the first ``steps`` steps of the run, at its rates (Bu 2025): the first grows when
    the rate has risen to its peak, the second is of fixed size.

    Args:
        config: a run of two stages, of which the second grows.
        steps: of each of the short runs.
        output: their output_dirs are in this directory.
        seed: theirs.

    Raises:
        UserError: a run that this does not fit.
    """
    train, schedule = config.train, config.schedule
    if len(config.stages) != 2 or config.stages[1].grow is None:
        raise UserError(
            f"stages: calibration is for a run that grows once, in the second of two stages; this "
            f"one has {len(config.stages)}"
        )
    if not train.eval_iters:
        raise UserError("train.eval_iters=0 measures no validation losses, which decide here")
    laid_out = schedule.lr_decay_iters or train.train_iters
    warm = max(1, round(schedule.lr_warmup_fraction * laid_out))
    if not warm < steps <= train.train_iters:
        raise UserError(
            f"--steps {steps} must be more than the {warm} of the warm-up, and at most "
            f"train.train_iters={train.train_iters}"
        )
    small, grown = config.stages
    short = replace(
        config,
        run=replace(
            config.run,
            name="grown",
            output_dir=str(output / f"grown_seed{seed}"),
            overwrite=False,
            seed=seed,
        ),
        train=replace(
            train,
            train_iters=steps,
            eval_interval=min(train.eval_interval, max(1, steps // _EVALUATIONS)),
        ),
        schedule=replace(schedule, lr_decay_iters=laid_out, cooldown_iters=0),
        checkpoint=replace(config.checkpoint, save=None, save_interval=0, load="auto"),
        stages=[replace(small, until=warm), grown],
    )
    twin = twin_of(short, "steps").config
    directory = str(output / f"fixed_size_seed{seed}")
    named = replace(twin.run, name="fixed_size", output_dir=directory)
    return {"grown": short, "fixed_size": replace(twin, run=named)}


def calibration_of(
    config: RunConfig, grown: Sequence[Run], fixed_size: Sequence[Run], tolerance: float
) -> Calibration:
    """What finished short runs say of ``config``.

    Args:
        config: the run that they calibrate.
        grown: of :func:`proxies`, one for each seed.
        fixed_size: the same.
        tolerance: relative difference of validation losses at which they count as mixed.

    Raises:
        UserError: runs that are not finished.
    """
    [ours], [theirs] = grouped(grown), grouped(fixed_size)
    curve = theirs.curve
    if curve is None or len(ours.sound) < len(ours.runs):
        raise UserError("one of the short runs has diverged; calibrate with a lower optimizer.lr")

    def times(within: float) -> list[int | None]:
        return [mixing_time(run, curve, within) for run in ours.runs]

    iters, every = config.train.train_iters, int(ours.runs[0].config["train"]["eval_interval"])
    measured = times(tolerance)
    found = [time for time in measured if time is not None]
    slowest = max(found) if len(found) == len(measured) else None
    fastest = max(0, min(found) - every) if found else None
    return Calibration(
        train_iters=iters,
        mixing_steps=slowest,
        mixing_steps_least=fastest,
        growth_step=None if slowest is None else max(0, iters - slowest),
        growth_step_most=None if fastest is None else iters - fastest,
        model=asdict(with_vocabulary(config.model, config.data)),
        steps=curve.steps.tolist(),
        flops=curve.flops["flops_total"].tolist(),
        losses=curve.val_loss.tolist(),
        evidence={
            "runs": [str(run.output_dir) for run in (*ours.runs, *theirs.runs)],
            "seeds": [run.seed for run in ours.runs],
            "steps": ours.steps,
            "grown_at": [run.growths[-1].step for run in ours.runs],
            "eval_interval": every,
            "tolerance": tolerance,
            "mixing_steps": measured,
            "mixing_steps_by_tolerance": {
                within: times(within) for within in (tolerance / 2, 2 * tolerance)
            },
        },
    )
