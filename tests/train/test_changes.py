"""What is said of a run file that is not the one of the checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from megatron_grow.checkpoint.record import Record
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import StageSection
from megatron_grow.train.changes import check_changes
from tests.toy import MODEL


def run(*stages: StageSection) -> RunConfig:
    return RunConfig(model=MODEL, train=TrainSection(train_iters=40), stages=[*stages])


def said(before: RunConfig, after: RunConfig) -> list[str]:
    """Of a run that goes on as ``after``."""
    config: dict[str, Any] = json.loads(json.dumps(asdict(before)))
    record = Record(4, 0, 8, 64, 4, asdict(MODEL), "fp32", config)
    return check_changes(record, "checkpoint C", after, {})


def test_another_end_of_a_stage_is_told() -> None:
    rule = {"rule": "loss_below", "loss": 2.5, "at_most": 0.5}
    ruled = run(StageSection(until=rule), StageSection())
    assert said(ruled, ruled) == []
    stricter = run(StageSection(until={**rule, "loss": 2.25}), StageSection(rewarmup_iters=3))
    assert said(ruled, stricter) == [
        f"changed since checkpoint C: stages[0].until {rule} -> {rule | {'loss': 2.25}}, "
        "stages[1].rewarmup_iters 0 -> 3"
    ]
    fixed = run(StageSection(until=20), StageSection(methods=["frozen"]), StageSection())
    assert said(ruled, fixed) == [
        f"changed since checkpoint C: stages[0].until {rule} -> 20, "
        "stages[1].methods [] -> ['frozen']"
    ]


def test_what_may_differ_is_not() -> None:
    before = run(StageSection(until=20), StageSection())
    after = run(StageSection(until=20, parallel={"tensor_model_parallel_size": 2}), StageSection())
    after.train = replace(after.train, log_interval=7)
    assert said(before, after) == []
