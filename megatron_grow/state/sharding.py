"""How each axis is dealt to ranks: the one table.

Data parallelism does not appear in it. Its replicas hold the same boxes, or, under the distributed
optimizer, flat ranges of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

from megatron_grow.state.axes import Axis
from megatron_grow.state.boxes import Box


class Dealt(Enum):
    """Which ranks share the entries of an axis."""

    TENSOR = "tensor"
    """Tensor-parallel ranks: each holds one of as many equal runs. The last may end in padding, or
    be nothing else: then the box that a rank holds is empty."""
    PIPELINE = "pipeline"
    """Pipeline ranks: each holds single entries, as megatron-core's layout says."""


DEALT = {
    "layer": Dealt.PIPELINE,
    "vocab": Dealt.TENSOR,
    "kv_group": Dealt.TENSOR,
    "ffn": Dealt.TENSOR,
}
"""By the axis's name; every rank holds all of any other."""


def run(axis: Axis, ranks: int) -> int:
    """Entries that each of ``ranks`` tensor-parallel ranks has room for, padding included."""
    multiple = axis.multiple or 1
    return -(-axis.size // (multiple * ranks)) * multiple


def _cut(axis: Axis, rank: int, ranks: int) -> tuple[int, int]:
    size = run(axis, ranks)
    return min(rank * size, axis.size), min((rank + 1) * size, axis.size)


def shape_on_rank(axes: Iterable[Axis], ranks: int) -> tuple[int, ...]:
    """The shape of one layer of a tensor in the memory of one of ``ranks``, padding included."""
    shape = []
    for axis in axes:
        dealt = DEALT.get(axis.name)
        whole = 1 if dealt is Dealt.PIPELINE else axis.size
        shape.append(run(axis, ranks) if dealt is Dealt.TENSOR else whole)
    return tuple(shape)


def held(axes: Iterable[Axis], layer: int, rank: int, ranks: int) -> Box:
    """The box of a tensor that tensor-parallel ``rank`` of ``ranks`` holds of one ``layer``."""
    box = []
    for axis in axes:
        dealt = DEALT.get(axis.name)
        if dealt is Dealt.PIPELINE:
            box.append((layer, layer + 1))
        elif dealt is Dealt.TENSOR:
            box.append(_cut(axis, rank, ranks))
        else:
            box.append((0, axis.size))
    return tuple(box)


def shards(axes: Sequence[Axis], ranks: int) -> list[Box]:
    """The boxes, over all layers, that ``ranks`` tensor-parallel ranks hold, replicas once."""
    whole = tuple((0, axis.size) for axis in axes)
    for place, axis in enumerate(axes):
        if DEALT.get(axis.name) is Dealt.TENSOR:
            cuts = [_cut(axis, rank, ranks) for rank in range(ranks)]
            return [(*whole[:place], cut, *whole[place + 1 :]) for cut in cuts]
    return [whole]
