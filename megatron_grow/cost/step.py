"""One optimizer step, as the formulas of this package see it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from megatron_grow.config.batch import BatchShape
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.pipeline import chunk_layers
from megatron_grow.config.sections import DataSection
from megatron_grow.cost.activations import Activations, activations
from megatron_grow.cost.memory import MemoryEstimate, estimate_on_ranks
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.base import Optimizer


@dataclass(frozen=True, eq=False)
class Placement:
    """A model and its optimizer, on the ranks of a job.

    Each is equal to itself alone, so that what is calculated of it can be kept.
    """

    model: ModelConfig
    parallel: ParallelConfig
    world_size: int
    precision: Literal["fp32", "bf16"]
    optimizer: Optimizer

    @cached_property
    def states(self) -> list[MemoryEstimate]:
        """Of each pipeline rank."""
        return estimate_on_ranks(
            self.model,
            self.parallel,
            self.world_size,
            precision=self.precision,
            optimizer=self.optimizer,
        )

    @cached_property
    def layers(self) -> list[list[int]]:
        """How many each chunk of each pipeline rank has."""
        chunks = chunk_layers(self.parallel, self.model.num_layers, "parallel")
        return [[len(chunk) for chunk in of_rank] for of_rank in chunks]

    @cached_property
    def shares_state(self) -> bool:
        """Whether data-parallel ranks share the optimizer's state."""
        tensors = logical_tensors(self.model).values()
        parallel = self.parallel
        wanted = parallel.use_distributed_optimizer and self.replicas > 1
        return wanted and self.optimizer.may_be_sharded(tensors)

    @property
    def replicas(self) -> int:
        """Ranks that hold the same weights."""
        return self.parallel.replicas(self.world_size, of_experts=False)


@dataclass(frozen=True)
class Step:
    """What a placed model reads in one step, and what it keeps of it."""

    placement: Placement
    batch: BatchShape
    recompute_num_layers: int | None = None
    """Layers in one piece that is recomputed; None: all activations are kept."""
    data: DataSection | None = None
    """Of the run, as in :func:`.flops.flops_per_sample`."""
    kernels: frozenset[str] = frozenset()
    """Those of :class:`~megatron_grow.config.kernels.KernelsSection` that are used."""

    @property
    def micro_batches(self) -> int:
        """That each rank passes through its part of the model."""
        placed = self.placement
        peers = placed.parallel.data_parallel_size(placed.world_size)
        return self.batch.global_batch_size // (self.batch.micro_batch_size * peers)

    @cached_property
    def activations(self) -> Activations:
        """Of one micro-batch."""
        placed = self.placement
        width = 2 if placed.precision == "bf16" else 4
        return activations(
            placed.model, placed.parallel, self.batch, width, self.data, self.kernels
        )
