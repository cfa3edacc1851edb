"""Where the tensors of another format hold parts of logical ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch

from megatron_grow.state.boxes import Box, fold, intersect, shape_of
from megatron_grow.state.memory import contiguous


@dataclass(frozen=True)
class Region:
    """A stored tensor and the part of a logical one that it holds.

    For example a Llama's ``k_proj.weight`` holds, of ``linear_qkv.weight``, one layer and the
    second to last entry of the axis ``qkv_head``.
    """

    name: str
    """Of the stored tensor, in its format."""
    key: str
    """Of the logical tensor."""
    box: Box
    """In its fine axes."""
    order: tuple[int, ...]
    """The fine axes in the order in which they are stored; an axis of one entry may stand
    anywhere."""
    groups: tuple[int, ...]
    """How many of the axes in ``order`` make each stored dimension."""
    padding: int = 0
    """Stored rows of zeros behind those of ``box``."""

    @cached_property
    def _fine_shape(self) -> tuple[int, ...]:
        extents = shape_of(self.box)
        return tuple(extents[axis] for axis in self.order)

    @cached_property
    def _turned(self) -> bool:
        """Whether it is a matrix stored (in, out): turned as a whole, it is copied many times as
        fast as axis by axis."""
        innermost = len(self.order) - 1
        return len(self.groups) == 2 and innermost in self.order[: self.groups[0]]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the stored tensor."""
        sizes, axis = [], 0
        for count in self.groups:
            sizes.append(prod(self._fine_shape[axis : axis + count]))
            axis += count
        return (sizes[0] + self.padding, *sizes[1:])

    def parts(self, box: Box) -> Iterator[tuple[Box, Box]]:
        """What is stored of ``box``: pairs of a box in fine axes, and where it is stored."""
        common = intersect(box, self.box)
        if common is None:
            return
        origin = [start for start, _ in self.box]
        moved = tuple((common[a][0] - origin[a], common[a][1] - origin[a]) for a in self.order)
        for fine, stored in fold(self._fine_shape, moved, self.groups):
            here = list(self.box)
            for axis, (start, stop) in zip(self.order, fine, strict=True):
                here[axis] = (start + origin[axis], stop + origin[axis])
            yield tuple(here), stored

    def to_logical(self, values: torch.Tensor, part: Box) -> torch.Tensor:
        """``values`` as stored, seen in the fine axes of ``part``."""
        extents, order = shape_of(part), self.order
        if self._turned:
            order = order[self.groups[0] :] + order[: self.groups[0]]
            values = contiguous(contiguous(values).t())
        ordered = values.reshape([extents[axis] for axis in order])
        return ordered.permute([order.index(axis) for axis in range(len(order))])

    def to_stored(self, values: torch.Tensor, stored: Box) -> torch.Tensor:
        """``values`` in fine axes, as they are stored; contiguous."""
        if self._turned:
            order = self.order[self.groups[0] :] + self.order[: self.groups[0]]
            rows, columns = shape_of(stored)
            return contiguous(contiguous(values.permute(order)).view(columns, rows).t())
        return contiguous(values.permute(self.order)).view(shape_of(stored))


class Regions:
    """All stored tensors of a model, found by the logical tensor that they hold a part of."""

    def __init__(self, regions: Iterable[Region]) -> None:
        self.by_name = {region.name: region for region in regions}
        # By the first axis: it is the layer of most tensors, and most tensors are of one layer.
        self._by_key: dict[str, dict[tuple[int, int], list[Region]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for region in self.by_name.values():
            self._by_key[region.key][region.box[0]].append(region)

    def overlapping(self, key: str, box: Box) -> Iterator[Region]:
        """The stored tensors that hold a part of ``box`` of the logical tensor ``key``."""
        start, stop = box[0]
        for (first, last), regions in self._by_key[key].items():
            if first < stop and start < last:
                yield from (r for r in regions if intersect(r.box, box) is not None)
