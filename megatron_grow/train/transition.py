"""Into the first stage, and from one stage to the next, in the same processes."""

from __future__ import annotations

import torch

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.growth.in_memory import transfer
from megatron_grow.growth.plan import Plan
from megatron_grow.live.stage import LiveStage
from megatron_grow.optim.state import get_step, set_step
from megatron_grow.parallel.agreement import largest_over_ranks


def begin(stage: Stage, config: RunConfig, plan: Plan) -> LiveStage:
    """A stage with the fresh state of ``plan``; every rank of the job takes part."""
    live = LiveStage(stage, config, plan.tensors)
    transfer(plan, [], live.pieces())
    live.publish()
    return live


def grow(live: LiveStage, stage: Stage, config: RunConfig, plan: Plan) -> tuple[LiveStage, int]:
    """Tear ``live`` down, build ``stage``, move the state by ``plan``; every rank takes part.

    Returns:
        The new stage, and the bytes that this rank received.
    """
    source, updates = live.pieces(), _updates(live)
    live.release()
    grown = LiveStage(stage, config, plan.tensors)
    received = transfer(plan, source, grown.pieces())
    del source
    torch.cuda.empty_cache()  # activations of another shape would not fit the holes
    grown.publish()
    grown.fade_in(plan.fading_in, stage.first_step)
    set_step(grown.optimizer, 0 if plan.optimizer_state == "reset" else updates)
    return grown, received


def _updates(live: LiveStage) -> int:
    """Updates that Adam has done; where no rank uses it, the steps of the run."""
    own = get_step(live.optimizer)
    # A pipeline rank may hold no parameter now, and some after the growth.
    agreed = largest_over_ranks(-1 if own is None else own)
    return live.stage.last_step if agreed < 0 else agreed
