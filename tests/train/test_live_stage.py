"""What a stage leaves behind when it is released."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from tests.distributed import run_ranks
from tests.toy import begin, layout, micro_batches, run_config


def _survivors(config: RunConfig, world_size: int) -> int:
    """Buffers and parameters that outlive their stage."""
    live = begin(config, world_size)
    live.train_step(1, micro_batches(config, 0))
    [chunk] = live.chunks
    watched = [weakref.ref(buffer) for buffer in chunk.buffers]
    watched += [weakref.ref(param) for param in chunk.parameters()]
    del chunk
    gc.disable()  # a later pass of the collector would be too late for a growth
    live.release()
    return sum(ref() is not None for ref in watched)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "parallel", [layout(), layout(use_distributed_optimizer=False), layout(tp=2), layout(pp=2)]
)
def test_a_released_stage_is_gone(parallel: dict[str, Any], precision: str) -> None:
    """megatron-core's buffers, hooks and sharded parameters hold each other."""
    config = run_config(StageSection(parallel=parallel), precision=precision)
    assert run_ranks(2, _survivors, config, 2) == [0, 0]
