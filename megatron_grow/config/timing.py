"""Stages in time, where the step at which one ends is known only afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megatron_grow.config.stages import Stage


def ended(stages: Sequence[Stage], index: int, step: int) -> list[Stage]:
    """``stages`` of which number ``index`` ends after ``step``; those after it begin there."""
    timed = [*stages[:index], replace(stages[index], last_step=step, rule=None)]
    for stage in stages[index + 1 :]:
        before = timed[-1]
        first_token = before.tokens_at(before.last_step)
        timed.append(replace(stage, first_step=before.last_step, first_token=first_token))
    return timed


def can_end(stages: Sequence[Stage], index: int, step: int) -> bool:
    """Whether number ``index`` can end after ``step``.

    It can at a step of its own after which every later stage, with its end as far as it is known,
    begins where a sequence of its own begins.
    """
    stage = stages[index]
    if not stage.first_step < step <= stage.last_step:
        return False
    later = ended(stages, index, step)[index + 1 :]
    return all(after.first_token % after.batch.seq_length == 0 for after in later)


def next_end(stages: Sequence[Stage], index: int, step: int) -> int:
    """The first step from ``step`` on at which number ``index`` can end."""
    steps = range(step, stages[index].last_step)
    return next((s for s in steps if can_end(stages, index, s)), stages[index].last_step)


def most_tokens(stages: Sequence[Stage]) -> int:
    """Training tokens that the run consumes; at most, where rules may end some of its stages.

    Args:
        stages: as the run file has them. What is known of their ends must not change the answer,
            on which an index that is kept depends.
    """
    first = next((stage for stage in stages if stage.rule), stages[-1])
    steps = stages[-1].last_step - first.first_step
    return first.first_token + steps * max(stage.batch.tokens for stage in stages[first.index :])
