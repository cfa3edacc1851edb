"""How each axis is dealt to ranks: the one table.

Data parallelism does not appear in it. Its replicas hold the same boxes, or, under the distributed
optimizer, flat ranges of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import TYPE_CHECKING

from megatron_grow.state.boxes import Box

if TYPE_CHECKING:
    from megatron_grow.state.axes import Axis


class Dealt(Enum):
    """Which ranks share the entries of an axis."""

    TENSOR = "tensor"
    """Tensor-parallel ranks: each holds one of as many equal runs."""
    PIPELINE = "pipeline"
    """Pipeline ranks: each holds single entries, as megatron-core's layout says."""


DEALT = {
    "layer": Dealt.PIPELINE,
    "vocab": Dealt.TENSOR,
    "kv_group": Dealt.TENSOR,
    "ffn": Dealt.TENSOR,
}
"""By the axis's name; every rank holds all of any other."""


def held(axes: Iterable[Axis], layer: int, rank: int, ranks: int) -> Box:
    """The box of a tensor that tensor-parallel ``rank`` of ``ranks`` holds of one ``layer``."""
    box = []
    for axis in axes:
        dealt = DEALT.get(axis.name)
        if dealt is Dealt.PIPELINE:
            box.append((layer, layer + 1))
        elif dealt is Dealt.TENSOR:
            size = axis.size // ranks
            box.append((rank * size, (rank + 1) * size))
        else:
            box.append((0, axis.size))
    return tuple(box)


def shards(axes: Sequence[Axis], ranks: int) -> list[Box]:
    """The boxes, over all layers, that ``ranks`` tensor-parallel ranks hold, replicas once."""
    whole = tuple((0, axis.size) for axis in axes)
    for place, axis in enumerate(axes):
        if DEALT.get(axis.name) is Dealt.TENSOR:
            size = axis.size // ranks
            cuts = [(rank * size, (rank + 1) * size) for rank in range(ranks)]
            return [(*whole[:place], cut, *whole[place + 1 :]) for cut in cuts]
    return [whole]
