"""How much memory weights and optimizer state take on a rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.pipeline import chunk_layers
from megatron_grow.cost.parameters import Parameter, parameters

Optimizer = Literal["adam", "sgd", "muon", "muon_nsgd"]


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
    optimizer: Optimizer = "adam",
) -> MemoryEstimate:
    """Bytes of weights, fp32 gradients and optimizer state on the fullest rank.

    Under bf16 the optimizer keeps fp32 main parameters; under fp32 it updates the weights
    themselves. The distributed optimizer cuts main parameters and Adam's moments over the data-
    and context-parallel ranks.
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
    numel = moments = 0
    for parameter in parameters(model):
        copies = _copies_on(rank, layers, parameter, model, parallel)
        cut = parallel.tensor_model_parallel_size if parameter.sharded else 1
        here = parameter.numel * copies // cut
        numel += here
        moments += here * _moments(optimizer, parameter)
    adam = optimizer == "adam"
    state_cut = (
        parallel.data_parallel_size(world_size) * parallel.context_parallel_size
        if adam and parallel.use_distributed_optimizer
        else 1
    )
    bf16 = precision == "bf16"
    return MemoryEstimate(
        weights=numel * (2 if bf16 else 4),
        gradients=numel * 4,
        main_params=-(-numel * 4 // state_cut) if bf16 else 0,
        moments=-(-moments * 4 // state_cut),
    )


def _copies_on(
    rank: int, layers: int, parameter: Parameter, model: ModelConfig, parallel: ParallelConfig
) -> int:
    """How many copies of ``parameter`` pipeline rank ``rank``, of ``layers`` layers, holds."""
    first, last = rank == 0, rank == parallel.pipeline_model_parallel_size - 1
    if parameter.part == "blocks":
        return layers
    if parameter.part == "embedding":  # the last rank keeps a copy as its tied head
        return int(first or (last and model.share_embeddings_and_output_weights))
    return int(first if parameter.part == "positions" else last)


def _moments(optimizer: Optimizer, parameter: Parameter) -> int:
    """State tensors of ``parameter``'s shape: two for Adam, one for momentum."""
    if optimizer == "muon":  # matrices of the layers by Muon, all else by Adam
        return 1 if parameter.part == "blocks" and parameter.is_matrix else 2
    return 2 if optimizer == "adam" else 1
