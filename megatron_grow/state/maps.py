"""The algebra of growth: how a target tensor is made from source tensors, and any slice of it.

A *tensor map* is a sum of separable terms, one map for each axis, plus a rule for entries that no
term covers. :func:`materialise` makes any slice of the target; whoever applies a map (between live
models, while loading, or from file to file) supplies only the function that reads source slices, so
that all of them get the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Protocol

import torch

from megatron_grow.state.axes import Init, LogicalTensor
from megatron_grow.state.boxes import Box, shape_of, slices, subtract
from megatron_grow.state.fresh import fresh

FRESH = -1
"""An index that draws on no source entry."""

# A gather of more runs than this over one slice reads the range that spans them, once.
_MOST_RUNS = 8


@dataclass(frozen=True)
class Segment:
    """A piece of a target axis and what it needs of the source axis."""

    target: tuple[int, int]
    source: tuple[int, int] | None
    """None: fresh."""
    index: torch.Tensor | None = None
    """Positions within ``source``, one for each target entry; None: one to one."""
    matrix: torch.Tensor | None = None
    """(target, source) weights; None: a plain gather."""
    scale: torch.Tensor | None = None
    """Factor for each target entry."""


@dataclass(frozen=True)
class Identity:
    """The target axis is the source axis."""

    def segments(self, start: int, stop: int) -> list[Segment]:
        """What entries ``start:stop`` need."""
        return [Segment((start, stop), (start, stop))]


@dataclass(frozen=True)
class Gather:
    """Entry i of the target axis is ``scale[i]`` times entry ``index[i]`` of the source axis."""

    index: tuple[int, ...]
    scale: tuple[float, ...] | None = None

    def segments(self, start: int, stop: int) -> list[Segment]:
        """What entries ``start:stop`` need: runs of consecutive source entries, and fresh runs."""
        runs = list(self._runs(start, stop))
        if len(runs) <= _MOST_RUNS:
            return [
                Segment(
                    (a, b),
                    None if self.index[a] == FRESH else (self.index[a], self.index[a] + b - a),
                    scale=self._scales(a, b),
                )
                for a, b in runs
            ]
        return [self._span(a, b) for a, b in self._covered(start, stop)]

    def first_only(self) -> Gather:
        """The same gather without duplicates: of entries that copy one, the first keeps it."""
        seen: set[int] = set()
        index = []
        for source in self.index:
            index.append(FRESH if source in seen else source)
            seen.add(source)
        return Gather(tuple(index), self.scale)

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Maximal ranges over which the index is FRESH, or counts up by one."""
        begin = start
        for i in range(start + 1, stop + 1):
            if i < stop:
                before, here = self.index[i - 1], self.index[i]
                if here == before == FRESH or (before != FRESH and here == before + 1):
                    continue
            yield begin, i
            begin = i

    def _covered(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Maximal ranges that are all fresh or all drawn from the source."""
        begin = start
        for i in range(start + 1, stop + 1):
            if i == stop or (self.index[i] == FRESH) != (self.index[begin] == FRESH):
                yield begin, i
                begin = i

    def _span(self, a: int, b: int) -> Segment:
        part = self.index[a:b]
        if part[0] == FRESH:
            return Segment((a, b), None)
        low, high = min(part), max(part) + 1
        return Segment(
            (a, b), (low, high), index=torch.tensor(part) - low, scale=self._scales(a, b)
        )

    def _scales(self, a: int, b: int) -> torch.Tensor | None:
        return None if self.scale is None else torch.tensor(self.scale[a:b])


@dataclass(frozen=True)
class Dense:
    """Entry i of the target axis is a linear mix, row i of ``matrix``, of the source axis."""

    matrix: torch.Tensor  # (target, source)

    def segments(self, start: int, stop: int) -> list[Segment]:
        """What entries ``start:stop`` need: the whole source axis."""
        rows = self.matrix[start:stop]
        return [Segment((start, stop), (0, rows.shape[1]), matrix=rows)]


AxisMap = Identity | Gather | Dense


@dataclass(frozen=True)
class Term:
    """One separable part of a tensor map."""

    source: str
    """Key of the source tensor."""
    axes: tuple[AxisMap, ...]


@dataclass(frozen=True)
class TensorMap:
    """How one target tensor is made."""

    target: LogicalTensor
    terms: tuple[Term, ...]
    fresh: Init
    """Rule for entries that no term covers."""

    @cached_property
    def is_copy(self) -> bool:
        """Whether the target is the source, unchanged."""
        return len(self.terms) == 1 and all(isinstance(a, Identity) for a in self.terms[0].axes)


class Read(Protocol):
    """Supplies slices of source tensors."""

    def __call__(self, key: str, box: Box) -> torch.Tensor:
        """The values of source tensor ``key`` in ``box``; fp32, of the box's shape."""
        ...


def identity(tensor: LogicalTensor) -> TensorMap:
    """The map that keeps ``tensor`` as it is."""
    return TensorMap(tensor, (Term(tensor.key, (Identity(),) * len(tensor.axes)),), tensor.init)


def all_fresh(tensor: LogicalTensor) -> TensorMap:
    """The map that draws on nothing: initial values."""
    return TensorMap(tensor, (), tensor.init)


def sources(tensor_map: TensorMap, box: Box) -> list[tuple[str, Box]]:
    """The source slices that :func:`materialise` will read for ``box``, in its order."""
    return [
        (term.source, _source(block))
        for term in tensor_map.terms
        for block in _blocks(term.axes, box)
        if _is_drawn(block)
    ]


def materialise(
    tensor_map: TensorMap, box: Box, read: Read, seed: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The values of the target in ``box``; the same bits in whatever boxes it is asked for.

    Args:
        tensor_map: the map.
        box: in the fine axes of the target.
        read: supplies source slices; only those of :func:`sources` are asked for.
        seed: decides fresh values.
        out: written to and returned, if given; fp32, of the box's shape, on any device.

    Returns:
        fp32, of the shape of ``box``.
    """
    out = torch.empty(shape_of(box)) if out is None else out
    one_term = len(tensor_map.terms) == 1
    if not one_term:
        out.zero_()
    blocks = [(term, block) for term in tensor_map.terms for block in _blocks(term.axes, box)]
    for term, block in blocks:
        if _is_drawn(block):
            part, values = out[slices(_target(block), box)], _draw(term, block, read)
            part.copy_(values) if one_term else part.add_(values.to(out.device))
    if one_term:  # its blocks tile the box
        missing = [_target(block) for _, block in blocks if not _is_drawn(block)]
    else:
        missing = [box]
        for _, block in blocks:
            if _is_drawn(block):
                missing = [rest for left in missing for rest in subtract(left, _target(block))]
    for rest in missing:
        fresh(tensor_map.target, rest, tensor_map.fresh, seed, out[slices(rest, box)])
    return out


def _blocks(axes: Sequence[AxisMap], box: Box) -> Iterator[tuple[Segment, ...]]:
    return product(*(axis.segments(*extent) for axis, extent in zip(axes, box, strict=True)))


def _target(segments: Sequence[Segment]) -> Box:
    return tuple(segment.target for segment in segments)


def _is_drawn(block: Sequence[Segment]) -> bool:
    return all(segment.source is not None for segment in block)


def _source(block: Sequence[Segment]) -> Box:
    return tuple(segment.source for segment in block)  # type: ignore[misc]


def _draw(term: Term, block: Sequence[Segment], read: Read) -> torch.Tensor:
    """What ``term`` contributes to one block."""
    values = read(term.source, _source(block))
    for axis, segment in enumerate(block):
        device = values.device
        if segment.index is not None:
            values = values.index_select(axis, segment.index.to(device))
        if segment.matrix is not None:
            values = _mix(segment.matrix.to(device), values, axis)
        if segment.scale is not None:
            shape = [-1 if i == axis else 1 for i in range(values.ndim)]
            values = values * segment.scale.to(device).view(shape)
    return values


def _mix(matrix: torch.Tensor, values: torch.Tensor, axis: int) -> torch.Tensor:
    """``matrix`` applied along ``axis``, summed in the order of the source axis.

    A matrix product would sum in an order that depends on the shape, so on the slice.
    """
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    mixed = torch.zeros((), device=values.device)
    for weights, entry in zip(matrix.unbind(1), values.split(1, axis), strict=True):
        mixed = mixed + weights.view(shape) * entry
    return mixed
