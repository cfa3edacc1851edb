"""The algebra of growth: how a target tensor is made from source tensors, and any slice of it.

A *tensor map* is a sum of separable terms, one map for each axis, plus a rule for entries that no
term covers. :func:`materialise` makes any slice of the target; whoever applies a map (between live
models, while loading, or from file to file) supplies only the function that reads source slices, so
that all of them get the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Protocol

import numpy as np
import torch

from megatron_grow.state.axes import Constant, Init, LogicalTensor, Normal
from megatron_grow.state.boxes import Box, shape_of, slices, subtract
from megatron_grow.state.fresh import fresh
from megatron_grow.state.memory import cast, empty

FRESH = -1
"""An index that draws on no source entry."""

# A gather of more runs than this over one slice reads the range that spans them, once.
_MOST_RUNS = 8


@dataclass(frozen=True)
class Noise:
    """Entry i is multiplied by 1 + ``level[i]`` x e, with e normal and new for every other index.

    Entries with one ``partner`` get the same e; with opposite levels, what they add up to stays.
    """

    partner: tuple[int, ...]
    """An entry of the axis."""
    level: tuple[float, ...]


@dataclass(frozen=True)
class Segment:
    """A piece of a target axis and what it needs of the source axis."""

    target: tuple[int, int]
    source: tuple[int, int] | None
    """None: fresh."""
    index: torch.Tensor | None = None
    """Positions within ``source``, one for each target entry; None: one to one."""
    matrix: torch.Tensor | None = None
    """(target, source) weights, or (1, source) for all entries alike; None: a plain gather."""
    scale: torch.Tensor | None = None
    """Factor for each target entry."""
    fresh: Init | None = None
    """Rule for these entries if they are fresh; None: the tensor's own."""
    noise: Noise | None = None
    """Of these entries."""


@dataclass(frozen=True)
class Identity:
    """The target axis is the source axis."""

    def segments(self, start: int, stop: int) -> list[Segment]:
        """What entries ``start:stop`` need."""
        return [Segment((start, stop), (start, stop))]

    def squared(self) -> Identity:
        """The map of squares."""
        return self


@dataclass(frozen=True)
class Gather:
    """Entry i of the target axis is ``scale[i]`` times entry ``index[i]`` of the source axis."""

    index: tuple[int, ...]
    scale: tuple[float, ...] | None = None
    fresh: Init | None = None
    """Rule for entries of index ``FRESH``; None: the tensor's own."""
    noise: Noise | None = None

    def segments(self, start: int, stop: int) -> list[Segment]:
        """What entries ``start:stop`` need: runs of consecutive source entries, and fresh runs."""
        runs = list(self._runs(start, stop))
        if len(runs) > _MOST_RUNS:
            return [self._span(a, b) for a, b in self._covered(start, stop)]
        return [
            Segment((a, b), None, fresh=self.fresh)
            if self.index[a] == FRESH
            else Segment(
                (a, b),
                (self.index[a], self.index[a] + b - a),
                scale=self._scales(a, b),
                noise=self._noise(a, b),
            )
            for a, b in runs
        ]

    def after(self, first: AxisMap) -> AxisMap:
        """The map that applies ``first`` to the source and then this one."""
        if isinstance(first, Identity):
            return self
        if not isinstance(first, Gather) or first.scale is not None:
            raise TypeError("only plain gathers are chained")
        index = tuple(FRESH if i == FRESH else first.index[i] for i in self.index)
        return replace(self, index=index)

    def first_only(self) -> Gather:
        """The same gather without duplicates: of entries that copy one, the first keeps it."""
        seen: set[int] = set()
        index = []
        for source in self.index:
            index.append(FRESH if source in seen else source)
            seen.add(source)
        return replace(self, index=tuple(index))

    def squared(self) -> Gather:
        """The same gather with squared scales."""
        if self.scale is None:
            return self
        return replace(self, scale=tuple(factor * factor for factor in self.scale))

    def without_fresh_tail(self) -> Gather:
        """The same gather up to its first fresh entry."""
        end = self.index.index(FRESH) if FRESH in self.index else len(self.index)
        scale = None if self.scale is None else self.scale[:end]
        return replace(self, index=self.index[:end], scale=scale)

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
            return Segment((a, b), None, fresh=self.fresh)
        low, high = min(part), max(part) + 1
        return Segment(
            (a, b),
            (low, high),
            index=torch.tensor(part) - low,
            scale=self._scales(a, b),
            noise=self._noise(a, b),
        )

    def _noise(self, a: int, b: int) -> Noise | None:
        return self.noise and Noise(self.noise.partner[a:b], self.noise.level[a:b])

    def _scales(self, a: int, b: int) -> torch.Tensor | None:
        if self.scale is None:
            return None
        return torch.tensor(self.scale[a:b], dtype=torch.float64)


@dataclass(frozen=True)
class Dense:
    """Entry i of the target axis is a linear mix, row i of ``matrix``, of the source axis."""

    matrix: torch.Tensor  # (target, source)

    def segments(self, start: int, stop: int) -> list[Segment]:
        """What entries ``start:stop`` need: the whole source axis."""
        rows = self.matrix[start:stop]
        return [Segment((start, stop), (0, rows.shape[1]), matrix=rows)]

    def squared(self) -> Dense:
        """The map of squares of entries that are independent."""
        return Dense(self.matrix.square())


@dataclass(frozen=True)
class MeanPadding:
    """The entries of ``kept``, and after them the mean of the source's first ``count``."""

    kept: Gather
    size: int
    """Entries of the target axis."""
    count: int

    def segments(self, start: int, stop: int) -> list[Segment]:
        """What entries ``start:stop`` need."""
        end = len(self.kept.index)
        found = self.kept.segments(start, min(stop, end)) if start < end else []
        if stop > end:
            mean = torch.full((1, self.count), 1 / self.count, dtype=torch.float64)
            found.append(Segment((max(start, end), stop), (0, self.count), matrix=mean))
        return found

    def squared(self) -> MeanPadding:
        """Not needed: nothing carries the gradient of a mean."""
        raise TypeError("a mean has no map of squares")


AxisMap = Identity | Gather | Dense | MeanPadding


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
    """Rule for entries that no term covers, unless an axis along which they are new has its own; a
    rule that asks for zeros wins."""

    @cached_property
    def is_copy(self) -> bool:
        """Whether the target is the source, unchanged."""
        return len(self.terms) == 1 and all(isinstance(a, Identity) for a in self.terms[0].axes)


class Read(Protocol):
    """Supplies slices of source tensors."""

    def __call__(self, key: str, box: Box) -> torch.Tensor:
        """The values of source tensor ``key`` in ``box``, of the box's shape; not written to.

        Of any floating type: whatever is calculated from them is calculated in fp32.
        """
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


def fresh_parts(tensor_map: TensorMap, box: Box) -> list[tuple[Box, Init]]:
    """The parts of ``box`` that draw on nothing, and how they are made."""
    blocks = [(term, block) for term in tensor_map.terms for block in _blocks(term.axes, box)]
    return _missing(tensor_map, box, blocks)


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
        Of the shape of ``box``, fp32; without ``out``, values that one read supplies and nothing
        changes are returned as they were read.
    """
    blocks = [(term, block) for term in tensor_map.terms for block in _blocks(term.axes, box)]
    if out is None:
        if len(blocks) == 1 and _is_drawn(blocks[0][1]):
            return _noisy(_draw(*blocks[0], read), tensor_map.target, blocks[0][1], seed)
        out = empty(shape_of(box))
    one_term = len(tensor_map.terms) == 1
    if not one_term:
        out.zero_()
    for term, block in blocks:
        if _is_drawn(block):
            part, values = out[slices(_target(block), box)], _draw(term, block, read)
            values = _noisy(values, tensor_map.target, block, seed)
            part.copy_(values) if one_term else part.add_(values.to(out.device))
    for rest, rule in _missing(tensor_map, box, blocks):
        fresh(tensor_map.target, rest, rule, seed, out[slices(rest, box)])
    return out


def _blocks(axes: Sequence[AxisMap], box: Box) -> Iterator[tuple[Segment, ...]]:
    return product(*(axis.segments(*extent) for axis, extent in zip(axes, box, strict=True)))


def _target(segments: Sequence[Segment]) -> Box:
    return tuple(segment.target for segment in segments)


def _missing(
    tensor_map: TensorMap, box: Box, blocks: Sequence[tuple[Term, Sequence[Segment]]]
) -> list[tuple[Box, Init]]:
    """The parts of ``box`` that no term covers, and the rule for each."""
    if not tensor_map.terms:
        return [(box, tensor_map.fresh)]
    # The blocks of the first term tile the box; what it does not draw, others may.
    first = tensor_map.terms[0]
    missing = [
        (_target(block), _rule(tensor_map, block))
        for term, block in blocks
        if term is first and not _is_drawn(block)
    ]
    for term, block in blocks:
        if term is not first and _is_drawn(block):
            missing = [
                (rest, rule) for part, rule in missing for rest in subtract(part, _target(block))
            ]
    return missing


def _rule(tensor_map: TensorMap, block: Sequence[Segment]) -> Init:
    """How the entries of a block without source are made."""
    rules = [s.fresh for s in block if s.source is None and s.fresh is not None]
    if Constant(0.0) in rules:
        return Constant(0.0)
    return rules[0] if rules else tensor_map.fresh


def _is_drawn(block: Sequence[Segment]) -> bool:
    return all(segment.source is not None for segment in block)


def _source(block: Sequence[Segment]) -> Box:
    return tuple(segment.source for segment in block)  # type: ignore[misc]


def _draw(term: Term, block: Sequence[Segment], read: Read) -> torch.Tensor:
    """What ``term`` contributes to one block."""
    values = read(term.source, _source(block))
    for axis, segment in enumerate(block):
        if segment.index is not None:
            values = _select(values, segment.index, axis)
        if segment.matrix is not None:
            values = _wide(values)
            values = _mix(segment.matrix.to(values), values, axis)
        if segment.scale is not None:
            values = _wide(values)
            shape = [-1 if i == axis else 1 for i in range(values.ndim)]
            values = values * segment.scale.to(values).view(shape)
    # One row of a mix may stand for many entries.
    return values.expand(shape_of(_target(block)))


def _noisy(
    values: torch.Tensor, tensor: LogicalTensor, block: Sequence[Segment], seed: int
) -> torch.Tensor:
    """``values`` of one block of ``tensor``, with the noise of its segments."""
    for axis, segment in enumerate(block):
        if segment.noise is None:
            continue
        partner = torch.tensor(segment.noise.partner)
        first = int(partner.min())
        box = list(_target(block))
        box[axis] = (first, int(partner.max()) + 1)
        of_noise = replace(tensor, key=f"{tensor.key}/noise")
        drawn = fresh(of_noise, tuple(box), Normal(1.0), seed).index_select(axis, partner - first)
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        level = torch.tensor(segment.noise.level, dtype=torch.float64).view(shape)
        values = _wide(values)
        values = values * (1 + level.to(values) * drawn.to(values))
    return values


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their size in bytes: numpy has no bfloat16."""


def _select(values: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """The entries of ``values`` at ``index`` along ``axis``."""
    if not values.is_cpu:
        return values.index_select(axis, index.to(values.device))
    # On CPU torch's own is up to 25 times slower along the last axis; "clip" skips a copy that
    # guards against indices out of range, which there are none of.
    bits = values.view(_BITS[values.element_size()]).numpy()
    return torch.from_numpy(np.take(bits, index.numpy(), axis, mode="clip")).view(values.dtype)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """``values`` in at least fp32, to calculate with."""
    return cast(values, torch.promote_types(values.dtype, torch.float32))


def _mix(matrix: torch.Tensor, values: torch.Tensor, axis: int) -> torch.Tensor:
    """``matrix`` applied along ``axis``, summed in the order of the source axis.

    A matrix product would sum in an order that depends on the shape, so on the slice.
    """
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    mixed = torch.zeros((), dtype=values.dtype, device=values.device)
    for weights, entry in zip(matrix.unbind(1), values.split(1, axis), strict=True):
        mixed = mixed + weights.view(shape) * entry
    return mixed
