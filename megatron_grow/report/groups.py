"""Runs that differ only in their seed, as one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np

from megatron_grow.inputs.errors import UserError
from megatron_grow.report.runs import Cost, Run

_NO_MATTER = {
    "parallel": None,
    "logging": None,
    "run": None,
    "kernels": None,
    "train": ("distributed_timeout_minutes", "pause_timeout_minutes"),
    "checkpoint": (
        "save",
        "save_interval",
        "async_save",
        "keep_last",
        "save_optimizer",
        "load",
        "allow_changes",
    ),
    "data": ("cache_dir", "num_workers", "prefetch"),
}
"""Sections of a run file, and fields of them (None: all), that change nothing of what is learnt, or
only what is drawn."""
_LENGTH = ("train.train_iters", "schedule.lr_decay_iters", "schedule.cooldown_iters")
_SEEN = ("train.log_interval", "train.eval_interval")
"""Fields in which runs of one recipe and several lengths differ."""


@dataclass(frozen=True)
class Spread:
    """A number over seeds."""

    n: int
    mean: float
    min: float
    max: float
    std: float | None
    """Of the sample; None of fewer than three."""

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Of those that there are; None of none."""
        found = [value for value in values if value is not None]
        if not found:
            return None
        deviation = stdev(found) if len(found) >= 3 else None
        return cls(len(found), fmean(found), min(found), max(found), deviation)

    def clear_of(self, other: Spread) -> bool | None:
        """Whether all seeds of one lie on one side of all of the other; None of single seeds."""
        if min(self.n, other.n) < 2:
            return None
        return self.max < other.min or other.max < self.min

    def json(self) -> dict[str, Any]:
        """For ``summary.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Group:
    """Finished runs that differ only in their seed, in the order of their seeds."""

    name: str
    runs: tuple[Run, ...]

    @property
    def sound(self) -> list[Run]:
        """Those that did not diverge."""
        return [run for run in self.runs if run.diverged_at is None]

    @property
    def steps(self) -> int:
        """Of each of them."""
        return self.runs[0].asked_steps

    @property
    def loss(self) -> Spread | None:
        """Final validation losses; None if all diverged."""
        return Spread.of(float(run.val_loss[-1]) for run in self.sound)

    def flops(self, cost: Cost) -> float:
        """Their mean; growths by a rule may differ from seed to seed."""
        return fmean(float(run.flops[cost][-1]) for run in self.sound or self.runs)

    @property
    def wall_seconds(self) -> float:
        """Their mean."""
        return fmean(run.wall_seconds for run in self.sound or self.runs)

    @property
    def curve(self) -> Run | None:
        """As one run, with the mean of losses over seeds; None if all diverged.

        Over the evaluations that all of them have, up to a growth that came at another step.
        """
        if not self.sound:
            return None
        first, count = self.sound[0], min(len(run.steps) for run in self.sound)
        steps = np.array([run.steps[:count] for run in self.sound])
        alike = (steps == steps[0]).all(axis=0)
        losses = np.mean([run.val_loss[:count] for run in self.sound], axis=0)
        return replace(
            first,
            steps=first.steps[:count][alike],
            numbers={"loss": losses[alike]},
            flops={cost: values[:count][alike] for cost, values in first.flops.items()},
        )


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ only in their seed together, in the order in which they come.

    Raises:
        UserError: a run that is not finished, or two of one seed.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.diverged_at is None and run.last_step != run.asked_steps:
            raise UserError(
                f"{run.output_dir} has been evaluated up to step {run.last_step} of "
                f"{run.asked_steps}; only finished runs can be compared"
            )
        alike = found.setdefault(_identity(run), [])
        for other in alike:
            if other.seed == run.seed:
                raise UserError(
                    f"{other.output_dir} and {run.output_dir} are the same run twice, of seed "
                    f"{run.seed}; name one of them"
                )
        alike.append(run)
    groups = [tuple(sorted(alike, key=lambda run: run.seed or 0)) for alike in found.values()]
    names = _names(groups)
    return [Group(name, group) for name, group in zip(names, groups, strict=True)]


def check_one_recipe(fixed_size: Sequence[Group]) -> None:
    """Raise :class:`UserError` unless these groups are one run at several lengths."""
    by_steps: dict[int, Group] = {}
    for group in fixed_size:
        first, run = fixed_size[0].runs[0], group.runs[0]
        ours, theirs = _recipe(first), _recipe(run)
        differ = [name for name in ours if ours[name] != theirs.get(name)]
        differ = [name for name in differ if name not in (*_LENGTH, *_SEEN)]
        if ours and theirs and differ:
            raise UserError(
                f"{first.output_dir} and {run.output_dir}, which others are compared with, differ "
                f"in {differ[0]}; name fixed-size runs of one recipe, of several lengths"
            )
        other = by_steps.setdefault(group.steps, group)
        if other is not group:
            raise UserError(
                f"{other.runs[0].output_dir} and {run.output_dir} are both fixed-size runs of "
                f"{group.steps} steps, and not two seeds of one; name one of them"
            )


def _recipe(run: Run) -> dict[str, Any]:
    """Fields of a run's record that say what it computes; its seed is none of them."""
    found = {}
    for name, section in run.config.items():
        apart = _NO_MATTER.get(name, ())
        if apart is None:
            continue
        if name == "stages":
            found[name] = section
            continue
        found |= {f"{name}.{field}": section[field] for field in section if field not in apart}
    return found


def _identity(run: Run) -> str:
    """The same for runs that differ only in their seed."""
    recipe = _recipe(run)
    return json.dumps(recipe, sort_keys=True) if recipe else str(run.output_dir.resolve())


def _names(groups: Sequence[tuple[Run, ...]]) -> list[str]:
    """What the runs call themselves, where that tells the groups apart; else their directories."""
    names = [group[0].config["run"]["name"] if group[0].config else "" for group in groups]
    directories = [group[0].output_dir.name for group in groups]
    for candidates in (names, directories):
        if all(candidates) and len(set(candidates)) == len(groups):
            return candidates
    return [str(group[0].output_dir) for group in groups]
