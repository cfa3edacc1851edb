"""Everything that can be found wrong before any model is built."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch.distributed as dist

from megatron_grow.checkpoint.layout import latest, locate
from megatron_grow.checkpoint.record import Record, read_record
from megatron_grow.checkpoint.stream import CheckpointReader
from megatron_grow.config.errors import UserError
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.data.datasets import check_data
from megatron_grow.growth.plan import Plan, growth, initialisation


@dataclass
class Start:
    """A complete checkpoint that the run continues from."""

    path: Path
    record: Record
    reader: CheckpointReader


@dataclass
class Prepared:
    """A run that has passed all checks."""

    config: RunConfig
    stages: list[Stage]
    plans: list[Plan]
    """How each stage begins: from nothing, or from the stage before."""
    start: Start | None


def prepare(config: RunConfig) -> Prepared:
    """Check the run on this rank.

    Args:
        config: with its vocabulary (:func:`~megatron_grow.data.tokenizers.with_vocabulary`).

    Raises:
        UserError: whatever cannot work.
    """
    stages = config.resolve(dist.get_world_size())
    plans = _plans(config, stages)
    assert config.model.vocab_size is not None
    check_data(
        config.data,
        seq_length=config.train.seq_length,
        vocab_size=config.model.vocab_size,
        evaluate=config.train.eval_iters > 0,
    )
    start = _find_start(config)
    if start is not None:
        _check_start(start, config, stages)
    return Prepared(config, stages, plans, start)


def _plans(config: RunConfig, stages: list[Stage]) -> list[Plan]:
    # One seed for all: fresh layers are those with which a run of the full size would have begun.
    depth, seed = config.model.num_layers, config.run.seed
    plans = [initialisation(stages[0].model, depth, seed)]
    for before, stage in pairwise(stages):
        where = f"stages[{stage.index}].grow"
        plans.append(
            growth(
                before.model, stage.model, stage.grow, target_depth=depth, seed=seed, where=where
            )
        )
    return plans


def _find_start(config: RunConfig) -> Start | None:
    load = config.checkpoint.load
    if load is None:
        return None
    path = latest(config.checkpoint_dir) if load == "auto" else locate(load)
    if path is None:
        return None
    return Start(path, read_record(path), CheckpointReader(path))


def _check_start(start: Start, config: RunConfig, stages: list[Stage]) -> None:
    record = start.record
    where = f"checkpoint {start.path}"
    if record.stage >= len(stages):
        raise UserError(f"{where} is of stages[{record.stage}], but the run has {len(stages)}")
    stage = stages[record.stage]
    if record.model_config != stage.model:
        raise UserError(f"{where} holds another model than stages[{record.stage}] describes")
    if not stage.first_step <= record.step <= stage.last_step:
        raise UserError(
            f"{where} is at step {record.step} of stages[{record.stage}], which now covers steps "
            f"{stage.first_step} to {stage.last_step}; restore stages and train_iters as they were"
        )
    longest = record.config["train"]["seq_length"]
    if config.train.seq_length != longest:
        raise UserError(
            f"{where} has read samples of train.seq_length={longest}; of "
            f"train.seq_length={config.train.seq_length} they would be other ones"
        )
    if stage.tokens_at(record.step) != record.consumed_tokens:
        raise UserError(
            f"{where} has consumed {record.consumed_tokens} tokens in {record.step} steps, the "
            f"stages now consume {stage.tokens_at(record.step)}; restore their batches (from here "
            "on, a new batch is a new stage)"
        )
    if record.precision != config.train.precision:
        raise UserError(
            f"{where} was trained in {record.precision}, train.precision={config.train.precision}"
        )
