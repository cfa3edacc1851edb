"""How much memory weights and optimizer state take on a rank."""

from __future__ import annotations

from collections import Counter
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

    @property
    def carried(self) -> int:
        """What a growth carries: main parameters, which under fp32 are the weights, and moments."""
        return (self.main_params or self.weights) + self.moments


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
    estimates = estimate_on_ranks(
        model, parallel, world_size, precision=precision, optimizer=optimizer
    )
    return max(estimates, key=lambda estimate: estimate.total)


def estimate_on_ranks(
    model: ModelConfig,
    parallel: ParallelConfig,
    world_size: int,
    *,
    precision: Literal["fp32", "bf16"],
    optimizer: Optimizer,
) -> list[MemoryEstimate]:
    """As :func:`estimate_memory`, on each pipeline rank."""
    tensors = list(logical_tensors(model).values())
    return [
        _on_pipeline_rank(
            rank,
            [layer for chunk in chunks for layer in chunk],
            tensors,
            parallel,
            world_size,
            precision,
            optimizer,
        )
        for rank, chunks in enumerate(chunk_layers(parallel, model.num_layers, "parallel"))
    ]


def _on_pipeline_rank(
    rank: int,
    layers: list[int],
    tensors: list[LogicalTensor],
    parallel: ParallelConfig,
    world_size: int,
    precision: str,
    optimizer: Optimizer,
) -> MemoryEstimate:
    shards = parallel.use_distributed_optimizer and optimizer.may_be_sharded(tensors)
    numel, state = Counter[int](), Counter[int]()  # by ranks that share the optimizer state
    for tensor in tensors:
        copies = _copies_on(rank, layers, tensor, parallel)
        here = prod(shape_on_rank(tensor.axes, parallel.mesh)) * copies
        sharers = parallel.replicas(world_size, of_experts=tensor.of_experts) if shards else 1
        numel[sharers] += here
        state[sharers] += here * len(optimizer.rule(tensor).states)
    bf16 = precision == "bf16"
    return MemoryEstimate(
        weights=numel.total() * (2 if bf16 else 4),
        gradients=numel.total() * 4,
        main_params=_bytes_of_a_share(numel) if bf16 else 0,
        moments=_bytes_of_a_share(state),
    )


def _bytes_of_a_share(values: Counter[int]) -> int:
    """What one rank has of fp32 ``values``, given by the number of ranks that share them."""
    return sum(-(-count * 4 // sharers) for sharers, count in values.items())


def _copies_on(
    rank: int, layers: list[int], tensor: LogicalTensor, parallel: ParallelConfig
) -> int:
    """How many copies of a tensor, or of a layer's, pipeline rank ``rank`` of ``layers`` holds."""
    if tensor.stacked:
        return sum(map(tensor.is_in, layers))
    last = rank == parallel.pipeline_model_parallel_size - 1
    here = rank == 0 if tensor.on_first_stage else last
    return int(here or (last and tensor.tied_as is not None))
