"""What a stage leaves behind when it is released, and what it hands on."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.optim.state import inner_optimizers
from megatron_grow.train.layer_numbers import LayerNumbers
from tests.distributed import run_ranks
from tests.toy import Trace, begin, grow, layout, loop_over, micro_batches, run_config, train_stage


def _survivors(config: RunConfig, world_size: int) -> int:
    """Buffers and parameters that outlive their stage."""
    live = begin(config, world_size)
    measure = LayerNumbers(lambda _: True, lambda *_: None)  # knows all modules and parameters
    loop = loop_over(live, config, others=[measure])
    loop.step(micro_batches(config, 0))
    loop.end()
    watched = [weakref.ref(buffer) for chunk in live.chunks for buffer in chunk.buffers]
    watched += [weakref.ref(param) for chunk in live.chunks for param in chunk.parameters()]
    gc.disable()  # a later pass of the collector would be too late for a growth
    live.release()
    assert loop.ctx.updated, "who has trained it is still there"
    return sum(ref() is not None for ref in watched)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "parallel",
    [
        layout(),
        layout(use_distributed_optimizer=False),
        layout(tp=2),
        layout(pp=2),
        layout(pp=2, virtual_pipeline_model_parallel_size=2),
    ],
)
def test_a_released_stage_is_gone(parallel: dict[str, Any], precision: str) -> None:
    """megatron-core's buffers, hooks and sharded parameters hold each other."""
    config = run_config(StageSection(parallel=parallel), precision=precision)
    assert run_ranks(2, _survivors, config, 2) == [0, 0]


def _step_counts(config: RunConfig, world_size: int) -> list[float]:
    """Adam's, at the beginning of the last stage."""
    live = begin(config, world_size)
    for _ in config.stages[1:]:
        train_stage(live, config, Trace())
        live = grow(live, config, world_size)
    [inner] = inner_optimizers(live.optimizer)
    return [float(state["step"]) for state in inner.state.values()]


def test_a_rank_that_held_nothing_learns_the_count_of_updates() -> None:
    """The middle of three ranks, which has layers only after the growth."""
    idle = layout(pp=3, pipeline_model_parallel_layout="E||tL")
    config = run_config(
        StageSection(until=1, model={"num_layers": 1}, parallel=idle),
        StageSection(
            until=3,
            model={"num_layers": 1},
            parallel=idle,
            grow=GrowSection(optimizer_state="reset"),
        ),
        StageSection(
            parallel=layout(pp=3, pipeline_model_parallel_layout="Et|tt|tL"),
            grow=GrowSection(depth="copying_stack"),
        ),
    )
    for counts in run_ranks(3, _step_counts, config, 3):
        assert counts and set(counts) == {2.0}
