"""Which part of a tensor each rank holds, by the axis table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from megatron_grow.state.axes import Axis, MeshDim
from megatron_grow.state.boxes import Box

Mesh = Mapping[MeshDim, int]
"""Ranks along each dimension; 1 where it says nothing."""
Place = Mapping[MeshDim, int]
"""A rank's coordinate along each dimension; 0 where it says nothing."""


def ranks_of(axis: Axis, mesh: Mesh) -> int:
    """How many ranks share the entries of ``axis`` in runs; 1: each holds all, or single ones."""
    dim = axis.rule.partitioned_by
    return 1 if dim in (None, MeshDim.PIPELINE) else mesh.get(dim, 1)


def run(axis: Axis, ranks: int) -> int:
    """Entries that each of ``ranks`` has room for, padding included."""
    multiple = axis.multiple or 1
    return -(-axis.size // (multiple * ranks)) * multiple


def shape_on_rank(axes: Iterable[Axis], mesh: Mesh) -> tuple[int, ...]:
    """The shape of one layer of a tensor in the memory of a rank, padding included."""
    return tuple(
        1 if axis.rule.partitioned_by is MeshDim.PIPELINE else run(axis, ranks_of(axis, mesh))
        for axis in axes
    )


def held(axes: Sequence[Axis], entry: Sequence[int], place: Place, mesh: Mesh) -> Box:
    """The box of a tensor that the rank at ``place`` holds of one ``entry`` of its first axes.

    Args:
        axes: the tensor's.
        entry: a layer, say, or a layer and an expert of it; empty for the whole tensor.
        place: where the rank is.
        mesh: ranks along each dimension.
    """
    box = [(index, index + 1) for index in entry]
    for axis in axes[len(entry) :]:
        dim = axis.rule.partitioned_by
        box.append(_part(axis, place.get(dim, 0) if dim else 0, ranks_of(axis, mesh)))
    return tuple(box)


def shards(axes: Sequence[Axis], mesh: Mesh) -> list[Box]:
    """The boxes, over all layers, that the ranks of ``mesh`` hold, replicas once."""
    parts = []
    for axis in axes:
        ranks = ranks_of(axis, mesh)
        parts.append([_part(axis, rank, ranks) for rank in range(ranks)])
    return list(product(*parts))


def undivided(axes: Iterable[Axis], mesh: Mesh) -> Iterator[Axis]:
    """Those of ``axes`` that ranks share evenly, and that are no multiple of these ranks."""
    for axis in axes:
        if not axis.rule.padded and axis.size % ranks_of(axis, mesh):
            yield axis


def _part(axis: Axis, rank: int, ranks: int) -> tuple[int, int]:
    size = run(axis, ranks)
    return min(rank * size, axis.size), min((rank + 1) * size, axis.size)
