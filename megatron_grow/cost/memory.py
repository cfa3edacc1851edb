"""How much memory weights and optimizer state take on a rank."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.pipeline import chunk_layers
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.base import Optimizer
from megatron_grow.state.sharding import shape_on_rank
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank; activations and communication buffers are not in it."""

    weights: int
    gradients: int
    main_params: int
    moments: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.weights + self.gradients + self.main_params + self.moments


def estimate_memory(
    model: ModelConfig,
    parallel: ParallelConfig,
    world_size: int,
    *,
    precision: Literal["fp32", "bf16"],
    optimizer: Optimizer,
) -> MemoryEstimate:
    """Bytes of weights, fp32 gradients and optimizer state on the fullest rank.

    Under bf16 the optimizer keeps fp32 main parameters; under fp32 it updates the weights
    themselves. The distributed optimizer shards main parameters and optimizer state over the
    data- and context-parallel ranks, for optimizers that allow it.
    """
    stages = chunk_layers(parallel, model.num_layers, "parallel")
    return max(
        (
            _on_pipeline_rank(
                rank, sum(map(len, chunks)), model, parallel, world_size, precision, optimizer
            )
            for rank, chunks in enumerate(stages)
        ),
        key=lambda estimate: estimate.total,
    )


def _on_pipeline_rank(
    rank: int,
    layers: int,
    model: ModelConfig,
    parallel: ParallelConfig,
    world_size: int,
    precision: str,
    optimizer: Optimizer,
) -> MemoryEstimate:
    numel = state = 0
    for tensor in logical_tensors(model).values():
        copies = _copies_on(rank, layers, tensor, parallel)
        here = prod(shape_on_rank(tensor.axes, parallel.mesh)) * copies
        numel += here
        state += here * len(optimizer.rule(tensor).states)
    state_cut = (
        parallel.data_parallel_size(world_size) * parallel.context_parallel_size
        if optimizer.shards and parallel.use_distributed_optimizer
        else 1
    )
    bf16 = precision == "bf16"
    return MemoryEstimate(
        weights=numel * (2 if bf16 else 4),
        gradients=numel * 4,
        main_params=-(-numel * 4 // state_cut) if bf16 else 0,
        moments=-(-state * 4 // state_cut),
    )


def _copies_on(rank: int, layers: int, tensor: LogicalTensor, parallel: ParallelConfig) -> int:
    """How many copies of a tensor, or of a layer's, pipeline rank ``rank`` of ``layers`` holds."""
    if tensor.stacked:
        return layers
    last = rank == parallel.pipeline_model_parallel_size - 1
    here = rank == 0 if tensor.on_first_stage else last
    return int(here or (last and tensor.tied_as is not None))
