"""Save live stages, and bring them back from disk."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_grow.checkpoint.record import Record, read_record
from megatron_grow.checkpoint.save import save
from megatron_grow.checkpoint.torch_dist.reader import TorchDistReader
from megatron_grow.config.run import RunConfig
from megatron_grow.growth.at_load import load
from megatron_grow.growth.plan import resharding
from megatron_grow.live.stage import LiveStage
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.schedule import LearningRateSchedule
from megatron_grow.optim.state import get_step, set_step
from tests.toy import micro_batches


def write(live: LiveStage, config: RunConfig, root: Path, step: int, **options: Any) -> Path:
    """Save ``live`` as it is after ``step`` steps."""
    tokens = live.stage.tokens_at(step)
    record = Record(
        step=step,
        stage=live.stage.index,
        consumed_samples=tokens // config.train.seq_length,
        consumed_tokens=tokens,
        optimizer_step=get_step(live.optimizer) or step,
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
    live = LiveStage(stage, config, logical_tensors(stage.model))
    load(resharding(stage.model), TorchDistReader(path), live.pieces())
    live.publish()
    set_step(live.optimizer, record.optimizer_step)
    return live


def train_to(live: LiveStage, config: RunConfig, first: int, last: int) -> list[float]:
    """Train steps ``first + 1`` to ``last``; their losses."""
    schedule = LearningRateSchedule(config.schedule, config.optimizer, config.train.train_iters)
    batches, losses = micro_batches(config, first), []
    for step in range(first + 1, last + 1):
        schedule.apply(live.optimizer, step, live.stage)
        loss, _ = live.train_step(step, batches)
        losses.append(live.mean_loss(loss, 1))
    return losses
