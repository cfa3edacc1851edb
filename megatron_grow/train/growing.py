"""From one stage to the next, and what is told of it."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch.distributed as dist

from megatron_grow.checkpoint.record import GrowthEvent
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.cost.parameters import count_parameters
from megatron_grow.growth.event import event_of
from megatron_grow.growth.filling import grown
from megatron_grow.growth.plan import Plan
from megatron_grow.live.stage import LiveStage
from megatron_grow.parallel.agreement import sum_over_ranks
from megatron_grow.train.rows import GrowthRow


class Growth(NamedTuple):
    """One that has happened."""

    event: GrowthEvent
    """For the records of checkpoints."""
    row: GrowthRow
    """For the metrics; the losses are not measured yet."""


def grow(
    live: LiveStage, stage: Stage, config: RunConfig, plan: Plan, step: int
) -> tuple[LiveStage, Growth]:
    """Leave ``live`` for ``stage`` by ``plan`` after ``step`` steps; every rank takes part."""
    before, world = live.stage, dist.get_world_size()
    dist.barrier()
    began = time.perf_counter()
    after, received = grown(live, stage, config, plan)
    dist.barrier()
    pause = time.perf_counter() - began
    layouts = before.parallel.describe(world), stage.parallel.describe(world)
    event = event_of(
        plan,
        stage.grow,
        before.model,
        step=step,
        stage=stage.index,
        source_layout=layouts[0],
        target_layout=layouts[1],
    )
    row: GrowthRow = {
        "event": "growth",
        "step": step,
        "stage": stage.index,
        "summary": plan.summary,
        "from_layers": before.model.num_layers,
        "to_layers": stage.model.num_layers,
        "from_layout": layouts[0],
        "to_layout": layouts[1],
        "from_batch": before.batch.describe(),
        "to_batch": stage.batch.describe(),
        "from_parameters": count_parameters(before.model),
        "to_parameters": count_parameters(stage.model),
        "bytes_moved": int(sum_over_ranks(received)),
        "pause_seconds": pause,
        "groups_seconds": after.groups_seconds,
        "val_loss_before": None,
        "val_loss_after": None,
    }
    return after, Growth(event, row)
