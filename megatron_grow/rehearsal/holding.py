"""What any rank of a job of any size holds of a stage, without that job."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from megatron_grow.cost.buckets import buckets
from megatron_grow.cost.step import Placement
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.axes import MeshDim
from megatron_grow.state.boxes import Box, from_flat_range, shape_of, volume
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.piece import Piece
from megatron_grow.state.sharding import Place, held

_Bucket = list[tuple[str, Box]]
_NOTHING = torch.empty(0)


class Holding:
    """The pieces of each rank, cut as by megatron-core's distributed optimizer but for padding."""

    def __init__(self, placed: Placement) -> None:
        """Of a placed model."""
        self._placed = placed
        self._tensors = logical_tensors(placed.model)
        self._groups = sorted({tensor.of_experts for tensor in self._tensors.values()})
        self._known: dict[tuple, list[_Bucket]] = {}

    def pipeline_rank(self, rank: int) -> int:
        """Of a rank of the job; megatron-core counts the pipeline last."""
        ranks = self._placed.parallel.pipeline_model_parallel_size
        return rank // (self._placed.world_size // ranks)

    def of(self, rank: int) -> list[Piece]:
        """What a rank holds; without values."""
        rule = self._placed.optimizer.rule
        return sorted(
            (
                Piece(key, kind, box, _NOTHING, owned=True)
                for of_experts in self._groups
                for key, box in self._of_group(rank, of_experts)
                for kind in (MAIN_PARAM, *rule(self._tensors[key]).states)
            ),
            key=lambda piece: (piece.key, piece.kind, piece.box),
        )

    def _of_group(self, rank: int, of_experts: bool) -> Iterator[tuple[str, Box]]:
        """Of the parameters that expert-parallel ranks share, or of all others."""
        placed, pipeline = self._placed, self.pipeline_rank(rank)
        place, replica = self._place(rank, of_experts)
        replicas = placed.parallel.replicas(placed.world_size, of_experts=of_experts)
        known = (pipeline, of_experts, *place.values())
        if known not in self._known:
            self._known[known] = self._buckets(pipeline, of_experts, place)
        for bucket in self._known[known]:
            yield from _share(bucket, replica, replicas) if placed.shares_state else bucket

    def _place(self, rank: int, of_experts: bool) -> tuple[Place, int]:
        """Where a rank is, and which of the replicas it is, in megatron-core's order of dimensions:
        tensor, replicas; or expert-tensor, expert, replicas."""
        dims = (MeshDim.EXPERT_TENSOR, MeshDim.EXPERT) if of_experts else (MeshDim.TENSOR,)
        place, mesh = {}, self._placed.parallel.mesh
        ranks = self._placed.world_size // self._placed.parallel.pipeline_model_parallel_size
        rest = rank % ranks
        for dim in dims:
            rest, place[dim] = divmod(rest, mesh[dim])
        return place, rest

    def _buckets(self, pipeline: int, of_experts: bool, place: Place) -> list[_Bucket]:
        mesh = self._placed.parallel.mesh
        return [
            [
                (
                    tensor.key,
                    held(
                        tensor.axes, () if layer is None else (tensor.entry_of(layer),), place, mesh
                    ),
                )
                for tensor, layer, _ in bucket
            ]
            for bucket in buckets(self._placed, pipeline, of_experts=of_experts)
        ]


def _share(bucket: _Bucket, replica: int, replicas: int) -> Iterator[tuple[str, Box]]:
    """What one of the replicas updates of a bucket."""
    share = -(-sum(volume(box) for _, box in bucket) // replicas)
    begin, end, start = replica * share, (replica + 1) * share, 0
    for key, box in bucket:
        size = volume(box)
        first, last = max(begin - start, 0), min(end - start, size)
        for part in from_flat_range(shape_of(box), first, last):
            moved = ((a + o, b + o) for (a, b), (o, _) in zip(part, box, strict=True))
            yield key, tuple(moved)
        start += size
