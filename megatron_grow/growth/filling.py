"""Live stages with values: fresh ones, or grown out of the stage before."""

from __future__ import annotations

from functools import partial

import torch

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.growth.in_memory import transfer
from megatron_grow.growth.plan import Plan
from megatron_grow.live.stage import LiveStage, filled
from megatron_grow.state.piece import Piece


def fresh(stage: Stage, config: RunConfig, plan: Plan) -> LiveStage:
    """A stage with the fresh state of ``plan``; every rank of the job takes part."""
    fill = partial(transfer, plan, [])
    return filled(stage, config, plan.tensors, fill, updates=0)


def grown(live: LiveStage, stage: Stage, config: RunConfig, plan: Plan) -> tuple[LiveStage, int]:
    """Tear ``live`` down, build ``stage``, move the state by ``plan``; every rank takes part.

    Returns:
        The new stage, and the bytes that this rank received.
    """
    source, received = live.pieces(), 0
    updates = 0 if plan.optimizer_state == "reset" else live.updates
    live.release()

    def fill(target: list[Piece]) -> None:
        nonlocal received
        received = transfer(plan, source, target)
        source.clear()
        torch.cuda.empty_cache()  # activations of another shape would not fit the holes

    made = filled(stage, config, plan.tensors, fill, updates)
    return made, received
