"""What a run file says otherwise than the checkpoint that is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from os.path import normpath
from typing import Any

from megatron_grow.checkpoint.record import Record
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import FIXED, OptimizerSection, ScheduleSection
from megatron_grow.config.stages import Stage, methods_by_place, stage_section
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import shown
from megatron_grow.optim.schedule import LearningRateSchedule

_TOLD = {
    "optimizer": None,
    "schedule": None,
    "train": ("train_iters", "eval_iters"),
    "parametrization": ("target",),
}
"""Sections, and fields of them (None: all), whose changes are said and not refused."""
_TOLD_OF_STAGES = ("until", "methods", "lr", "lr_multiplier", "rewarmup_iters")
_JUMP = 1.5
"""The rate may be so many times what it was without a word."""


def check_changes(
    record: Record, where: str, config: RunConfig, corpora: dict[str, str]
) -> list[str]:
    """Refuse another training under the name of this one.

    Args:
        record: what is resumed.
        where: begins the message of an error, for example ``checkpoint PATH``.
        config: the run.
        corpora: what it reads, as in the record.

    Returns:
        A line on what has changed and may change, or none.

    Raises:
        UserError: another seed, corpus, blend, tokenizer or optimizer.
    """
    changes = dict(_changes(_sections(record.config), _sections(asdict(config))))
    for prefix, was in record.corpora.items():
        if corpora.get(prefix, was) != was:
            changes.setdefault("data.train_data_path", (prefix, "made anew under that name"))
    refused = {
        name: change
        for name, change in changes.items()
        if name in FIXED and name not in config.checkpoint.allow_changes
    }
    if refused:
        what = ", ".join(f"{name}={old} (now {new})" for name, (old, new) in refused.items())
        raise UserError(
            f"{where} was trained with {what}; restore what it was, or go on with the change: "
            f"--checkpoint.allow_changes '[{', '.join(refused)}]'"
        )
    told = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changes.items())
    return [f"changed since {where}: {told}"] if told else []


def _sections(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of a run file; of its stages each is one."""
    stages = {f"stages[{index}]": stage for index, stage in enumerate(config.get("stages", []))}
    found = {name: section for name, section in config.items() if isinstance(section, dict)}
    return {**found, **stages}


def _changes(
    old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, tuple[str, str]]]:
    for section, was in old.items():
        told_of = _TOLD_OF_STAGES if section.startswith("stages[") else _TOLD.get(section, ())
        for name in was:
            told = told_of is None or name in told_of
            if not (told or f"{section}.{name}" in FIXED) or name not in new.get(section, ()):
                continue
            before, after = _plain(was[name]), _plain(new[section][name])
            if before != after:
                yield f"{section}.{name}", (shown(before), shown(after))


def remembered(record: Record, config: RunConfig) -> dict[str, Any]:
    """What the methods of the stage that goes on remember: those still in their place."""
    was, now = _methods(record, config)
    gone = {place for place in was if _name(was[place]) != _name(now.get(place))}
    return {place: state for place, state in record.methods.items() if place not in gone}


def _methods(record: Record, config: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of the stage that goes on, as the record has them and as the run file does."""
    sections, stage = record.config.get("stages", []), record.stage
    if stage >= min(len(sections), len(config.stages)):
        return {}, {}
    try:
        was = stage_section(sections[stage], f"stages[{stage}]")
    except UserError:
        return {}, {}  # of another version
    return methods_by_place(was), methods_by_place(config.stages[stage])


def _name(method: str | dict[str, Any] | None) -> str | None:
    return method.get("name") if isinstance(method, dict) else method


def _plain(value: Any) -> Any:
    """``value``, in which one path is always written the same way."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return normpath(value) if isinstance(value, str) else value


def rate_jump(record: Record, config: RunConfig, stage: Stage, saved: list[int]) -> str | None:
    """A line on a learning rate that has decayed and would rise again; None where it does not.

    Args:
        record: what is resumed.
        config: the run.
        stage: in which it goes on.
        saved: steps of the run's checkpoints.
    """
    try:
        before = LearningRateSchedule(
            ScheduleSection(**record.config["schedule"]),
            OptimizerSection(**record.config["optimizer"]),
            record.config["train"]["train_iters"],
        )
    except (KeyError, TypeError, UserError):
        return None  # of another program, or another version
    last, iterations = record.config["train"]["train_iters"], config.train.train_iters
    after = LearningRateSchedule(config.schedule, config.optimizer, iterations)

    def jumps(step: int) -> bool:
        goes_on = before.factor(min(step + 1, last))
        return after.factor(step + 1) > _JUMP * max(goes_on, before.factor(step))

    if record.step >= iterations or not jumps(record.step):
        return None
    rates = [
        schedule.lr(step, optimizer_lr)
        for schedule, step, optimizer_lr in (
            (before, record.step, record.config["optimizer"]["lr"]),
            (after, record.step + 1, config.optimizer.lr),
        )
    ]
    better = [step for step in saved if step < record.step and not jumps(step)]
    advice = f"step {better[-1]} was saved before it" if better else "none is kept here"
    return (
        f"the learning rate rises from {rates[0]:.2e}, where the decay to "
        f"train.train_iters={last} had brought it, to {rates[1]:.2e}; usual is to go on from a "
        f"checkpoint of before the decay: {advice}"
    )
