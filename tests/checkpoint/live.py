"""Save live stages, and bring them back from disk."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_grow.checkpoint.record import Record, read_record
from megatron_grow.checkpoint.save import save
from megatron_grow.checkpoint.torch_dist.reader import TorchDistReader
from megatron_grow.config.run import RunConfig
from megatron_grow.growth.at_load import load
from megatron_grow.growth.plan import resharding
from megatron_grow.live.stage import LiveStage, filled
from tests.toy import loop_over, micro_batches


def write(live: LiveStage, config: RunConfig, root: Path, step: int, **options: Any) -> Path:
    """Save ``live`` as it is after ``step`` steps."""
    tokens = live.stage.tokens_at(step)
    record = Record(
        step=step,
        stage=live.stage.index,
        consumed_samples=tokens // config.train.seq_length,
        consumed_tokens=tokens,
        optimizer_step=live.updates or step,
        model=asdict(live.stage.model),
        precision=config.train.precision,
        config=asdict(config),
    )
    return save(root, record, live.pieces(), live.tensors, **options)


def resume(path: Path, config: RunConfig, world_size: int) -> LiveStage:
    """The stage that a checkpoint stores, on the layout that ``config`` gives it."""
    record = read_record(path)
    stage = config.resolve(world_size)[record.stage]
    assert stage.model == record.model_config
    assert stage.tokens_at(record.step) == record.consumed_tokens
    plan = resharding(stage.model)
    read = partial(load, plan, TorchDistReader(path))
    return filled(stage, config, plan.tensors, read, record.optimizer_step)


def train_to(live: LiveStage, config: RunConfig, first: int, last: int) -> list[float]:
    """Train steps ``first + 1`` to ``last``; their losses."""
    steps = loop_over(live, config, first).steps(micro_batches(config, first))
    return [ctx.mean_loss() for ctx in islice(steps, last - first)]
