"""What any rank of a job of any size holds of a stage, without that job."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from megatron_grow.config.pipeline import chunk_layers
from megatron_grow.config.stages import Stage
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.base import Optimizer
from megatron_grow.state.axes import MeshDim
from megatron_grow.state.boxes import Box, from_flat_range, shape_of, volume
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.piece import Piece
from megatron_grow.state.sharding import held

_BUCKET, _BUCKET_PER_REPLICA = 40_000_000, 1_000_000
"""Parameters in a bucket at the least, as megatron-core chooses."""
_NOTHING = torch.empty(0)


class Holding:
    """The pieces of each rank, as megatron-core's distributed optimizer cuts them but for padding.

    Experts, which have replicas of their own, are not known here.
    """

    def __init__(self, stage: Stage, optimizer: Optimizer, world_size: int) -> None:
        """Of a stage under an optimizer, on ``world_size`` ranks."""
        parallel = stage.parallel
        self._tensors = logical_tensors(stage.model)
        self._optimizer, self._parallel = optimizer, parallel
        self._tensor_ranks = parallel.tensor_model_parallel_size
        self._replicas = parallel.replicas(world_size, of_experts=False)
        self._layers = chunk_layers(parallel, stage.model.num_layers, f"stages[{stage.index}]")
        self._shards = (
            parallel.use_distributed_optimizer
            and self._replicas > 1
            and optimizer.may_be_sharded(self._tensors.values())
        )
        self._known: dict[tuple[int, int], list[list[tuple[str, Box]]]] = {}

    def of(self, rank: int) -> list[Piece]:
        """What a rank holds; without values."""
        # megatron-core's order of dimensions, from the innermost: tensor, replicas, pipeline.
        tensor, rest = rank % self._tensor_ranks, rank // self._tensor_ranks
        replica, pipeline = rest % self._replicas, rest // self._replicas
        if (tensor, pipeline) not in self._known:
            self._known[tensor, pipeline] = self._buckets(tensor, pipeline)
        return sorted(
            (
                Piece(key, kind, box, _NOTHING, owned=True)
                for bucket in self._known[tensor, pipeline]
                for key, box in self._share(bucket, replica)
                for kind in (MAIN_PARAM, *self._optimizer.rule(self._tensors[key]).states)
            ),
            key=lambda piece: (piece.key, piece.kind, piece.box),
        )

    def _share(self, bucket: list[tuple[str, Box]], replica: int) -> Iterator[tuple[str, Box]]:
        """What one of the replicas updates of a bucket."""
        if not self._shards:
            yield from bucket
            return
        share = -(-sum(volume(box) for _, box in bucket) // self._replicas)
        begin, end, start = replica * share, (replica + 1) * share, 0
        for key, box in bucket:
            size = volume(box)
            first, last = max(begin - start, 0), min(end - start, size)
            for part in from_flat_range(shape_of(box), first, last):
                moved = ((a + o, b + o) for (a, b), (o, _) in zip(part, box, strict=True))
                yield key, tuple(moved)
            start += size

    def _buckets(self, tensor: int, pipeline: int) -> list[list[tuple[str, Box]]]:
        """Parameters of a rank, from the last to the first as gradients come."""
        least = max(_BUCKET, _BUCKET_PER_REPLICA * self._replicas)
        buckets: list[list[tuple[str, Box]]] = [[]]
        filled = 0
        for key, box in reversed([*self._parameters(tensor, pipeline)]):
            if filled >= least:
                buckets.append([])
                filled = 0
            buckets[-1].append((key, box))
            filled += volume(box)
        return buckets

    def _parameters(self, tensor: int, pipeline: int) -> Iterator[tuple[str, Box]]:
        mesh, place = self._parallel.mesh, {MeshDim.TENSOR: tensor}
        last = pipeline == self._parallel.pipeline_model_parallel_size - 1
        for key, logical in self._tensors.items():
            if not logical.stacked and pipeline == 0 and logical.on_first_stage:
                yield key, held(logical.axes, (), place, mesh)
        for layer in (layer for chunk in self._layers[pipeline] for layer in chunk):
            for key, logical in self._tensors.items():
                if logical.stacked and logical.is_in(layer):
                    yield key, held(logical.axes, (logical.entry_of(layer),), place, mesh)
        for key, logical in self._tensors.items():
            here = not logical.on_first_stage or (pipeline and logical.tied_as is not None)
            if not logical.stacked and last and here:
                yield key, held(logical.axes, (), place, mesh)
