"""The fixed-size twin of a progressive run: its target from the start, for a fair comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection, ScheduleSection
from megatron_grow.config.stages import Stage, resolve_stages
from megatron_grow.config.timing import can_end, ended
from megatron_grow.cost.flops import Definition, flops_at_step
from megatron_grow.data.tokenizers.vocabulary import with_vocabulary
from megatron_grow.inputs.errors import UserError
from megatron_grow.parametrization.table import by_itself
from megatron_grow.train.rows import FILE_NAME, read_rows

Equal = Literal["flops", "tokens", "steps"]


@dataclass(frozen=True)
class Cost:
    """What a run takes from its start to its end."""

    steps: int
    tokens: int
    flops: dict[Definition, int]
    """Without those of a checkpoint that it begins from."""


@dataclass(frozen=True)
class Twin:
    """A run file, and what the run and the one whose twin it is take."""

    config: RunConfig
    cost: Cost
    grown: Cost


def twin_of(
    config: RunConfig,
    equal: Equal,
    *,
    part: Definition = "total",
    ends: Mapping[int, int] | None = None,
) -> Twin:
    """The run of the target, from nothing, that takes as much as ``config`` in all.

    It has the run's samples and batches, and the layout and the peak rates of the last stage. Its
    warm-up, decay and cool-down are the same shares of its length as they are of the run's. Stages,
    growths, methods and what the run begins from are gone.
    A branch, which has the rates of the run that it left, has a twin with those of its own size.

    Args:
        config: a run that grows.
        equal: what the twin takes as much of, to the nearest step.
        part: for ``flops``, which parameters cost.
        ends: the steps after which stages did end that a rule or a method may end.

    Raises:
        UserError: a run whose cost is not known.
    """
    checkpoint = config.checkpoint
    begins_from = checkpoint.initial or checkpoint.load_directory
    if begins_from and equal == "flops":
        raise UserError(
            f"checkpoint: what {begins_from} has cost is not in this run file, so no twin of equal "
            "FLOPs can be made; one of equal tokens or steps can"
        )
    sized = config
    if config.model.vocab_size is None:
        sized = replace(config, model=with_vocabulary(config.model, config.data))
    if config.parametrization.target:
        config = sized = by_itself(sized)
    stages = _timed(sized, ends or {})
    grown = _cost(sized, stages)
    step = _cost(sized, _fixed_size(sized, stages, 1))
    steps = {
        "flops": round(grown.flops[part] / step.flops[part]),
        "tokens": round(grown.tokens / step.tokens),
        "steps": grown.steps,
    }[equal]
    fixed = _fixed_size(sized, stages, steps)
    suffix = f"equal_{equal}"
    twin = replace(
        config,
        run=replace(
            config.run,
            name=f"{config.run.name}_{suffix}",
            output_dir=f"{config.run.output_dir.rstrip('/')}_{suffix}",
            overwrite=False,
        ),
        parallel=fixed[0].parallel,
        train=replace(config.train, train_iters=steps),
        optimizer=_with_peak(config.optimizer, stages[-1].lr),
        schedule=_scaled(config.schedule, steps / grown.steps),
        checkpoint=replace(
            checkpoint,
            save=None,
            load=None if checkpoint.load_directory else checkpoint.load,
            initial=None,
            source_format=None,
            start="afresh",
            allow_changes=[],
        ),
        stages=[],
    )
    return Twin(twin, _cost(sized, fixed), grown)


def ends_of(output_dir: Path) -> dict[int, int]:
    """The steps after which stages of a run did end that a rule or a method might end.

    Raises:
        UserError: no metrics of a run.
    """
    rows = read_rows(output_dir / FILE_NAME)
    return {row["stage"]: row["last_step"] for row in rows if row.get("event") == "stage_end"}


def _timed(config: RunConfig, ends: Mapping[int, int]) -> list[Stage]:
    """The stages, each with the end that it has had."""
    stages = resolve_stages(
        config.stages, config.model, config.parallel, config.train, grows_at_load=True
    )
    for index, stage in enumerate(stages):
        if stage.rule is None:
            continue
        if index not in ends:
            raise UserError(
                f"stages[{index}].until: {stage.rule.name} decides where the stage ends, and with "
                "it what the run costs; name a finished run of it with --run"
            )
        if not can_end(stages, index, ends[index]):
            raise UserError(
                f"stages[{index}].until: the stage ended after step {ends[index]} in the run that "
                "--run names, and cannot end there in this run file"
            )
        stages = ended(stages, index, ends[index])
    return stages


def _fixed_size(config: RunConfig, stages: Sequence[Stage], steps: int) -> list[Stage]:
    """The target for so many steps, in the layout in which the run ends."""
    train = replace(config.train, train_iters=steps)
    return resolve_stages([], config.model, stages[-1].parallel, train)


def _with_peak(optimizer: OptimizerSection, lr: float | None) -> OptimizerSection:
    """``optimizer`` with the peak of a stage that has one of its own; others in proportion."""
    if lr is None:
        return optimizer
    muon_lr = optimizer.muon_lr and optimizer.muon_lr * lr / optimizer.lr
    return replace(optimizer, lr=lr, muon_lr=muon_lr)


def _scaled(schedule: ScheduleSection, factor: float) -> ScheduleSection:
    """``schedule`` of a run that is ``factor`` times as long; fractions follow by themselves."""
    return replace(
        schedule,
        lr_decay_iters=schedule.lr_decay_iters and round(schedule.lr_decay_iters * factor),
        cooldown_iters=round(schedule.cooldown_iters * factor),
    )


def _cost(config: RunConfig, stages: Sequence[Stage]) -> Cost:
    last = stages[-1]
    steps = last.last_step
    parts: tuple[Definition, ...] = ("total", "blocks")
    flops = {part: flops_at_step(stages, steps, part, config.data) for part in parts}
    return Cost(steps, last.tokens_at(steps), flops)
