"""The algebra of growth: how a target tensor is made from source tensors.

A *tensor map* is a sum of separable terms, one map for each axis, plus a rule for entries that no
term covers. :mod:`.materialise` applies one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch

from megatron_grow.state.tensors import Constant, Init, LogicalTensor

FRESH = -1
"""An index that draws on no source entry."""

# A gather of more runs than this over one slice reads the range that spans them, once.
_MOST_RUNS = 8


@dataclass(frozen=True)
class Noise:
    """Normal values, added to the entries of an axis; those of one group add up to zero.

    They are drawn for every other index anew, and lose the mean of their group. Entries of a group
    of one get none; all other groups are of one size.
    """

    group: tuple[int, ...]
    """A number for each entry."""
    level: float
    """Standard deviation, before the mean is taken away: relative to that of fresh weights, or to
    what the map makes of ``rms``."""
    rms: Mapping[str, tuple[float, ...]] | None = None
    """By key of a source tensor, the root mean square of each of its layers."""


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


@dataclass(frozen=True)
class Identity:
    """The target axis is the source axis."""

    def segments(self, start: int, stop: int) -> list[Segment]:
        """What entries ``start:stop`` need."""
        return [Segment((start, stop), (start, stop))]

    def copied(self, size: int) -> Sequence[int]:
        """The source entry that each of ``size`` target entries copies; ``FRESH``: none."""
        return range(size)

    def to_power(self, power: int) -> Identity:
        """The map of powers of entries."""
        return self


@dataclass(frozen=True)
class Gather:
    """Entry i of the target axis is ``scale[i]`` times entry ``index[i]`` of the source axis."""

    index: tuple[int, ...]
    scale: tuple[float, ...] | None = None
    fresh: Init | None = None
    """Rule for entries of index ``FRESH``; None: the tensor's own."""
    zero: tuple[int, ...] = ()
    """Entries of index ``FRESH`` that are zero, whatever the rule for others."""
    noise: Noise | None = None

    def segments(self, start: int, stop: int) -> list[Segment]:
        """What entries ``start:stop`` need: runs of consecutive source entries, and fresh runs."""
        runs = list(self._runs(start, stop))
        if len(runs) > _MOST_RUNS:
            return [self._span(a, b) for a, b in self._covered(start, stop)]
        return [
            Segment((a, b), None, fresh=self._rule(a))
            if self.index[a] == FRESH
            else Segment(
                (a, b),
                (self.index[a], self.index[a] + b - a),
                scale=self._scales(a, b),
            )
            for a, b in runs
        ]

    def copied(self, size: int) -> Sequence[int]:
        """The source entry that each of ``size`` target entries copies; ``FRESH``: none."""
        return self.index

    def after(self, first: Gather) -> Gather:
        """The map that applies ``first``, a plain gather, to the source and then this one."""
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

    def to_power(self, power: int) -> Gather:
        """The map of powers of entries: the same gather with powers of its scales."""
        if self.scale is None or power == 1:
            return self
        return replace(self, scale=tuple(prod([factor] * power) for factor in self.scale))

    def without_fresh_tail(self) -> Gather:
        """The same gather up to its first fresh entry."""
        end = self.index.index(FRESH) if FRESH in self.index else len(self.index)
        scale = None if self.scale is None else self.scale[:end]
        return replace(self, index=self.index[:end], scale=scale)

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Maximal ranges over which the index is FRESH by one rule, or counts up by one."""
        begin = start
        for i in range(start + 1, stop + 1):
            if i < stop:
                before, here = self.index[i - 1], self.index[i]
                if before != FRESH and here == before + 1:
                    continue
                if here == before == FRESH and self._rule(i) == self._rule(i - 1):
                    continue
            yield begin, i
            begin = i

    def _covered(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Maximal ranges that are all fresh by one rule, or all drawn from the source."""
        begin = start
        for i in range(start + 1, stop + 1):
            if i == stop or self._kind(i) != self._kind(begin):
                yield begin, i
                begin = i

    def _rule(self, i: int) -> Init | None:
        """For entry ``i``, if it is fresh."""
        return Constant(0.0) if i in self.zero else self.fresh

    def _kind(self, i: int) -> tuple[bool, Init | None]:
        """Whether entry ``i`` is fresh, and by which rule."""
        fresh = self.index[i] == FRESH
        return fresh, self._rule(i) if fresh else None

    def _span(self, a: int, b: int) -> Segment:
        part = self.index[a:b]
        if part[0] == FRESH:
            return Segment((a, b), None, fresh=self._rule(a))
        low, high = min(part), max(part) + 1
        return Segment(
            (a, b),
            (low, high),
            index=torch.tensor(part) - low,
            scale=self._scales(a, b),
        )

    def _scales(self, a: int, b: int) -> torch.Tensor | None:
        if self.scale is None:
            return None
        return torch.tensor(self.scale[a:b], dtype=torch.float64)


@dataclass(frozen=True)
class Dense:
    """Entry i of the target axis is a linear mix, row i of ``matrix``, of the source axis."""

    matrix: torch.Tensor  # (target, source)

    def segments(self, start: int, stop: int) -> list[Segment]:
        """What entries ``start:stop`` need: the range of the source axis with weights in it."""
        rows = self.matrix[start:stop]
        used = rows.any(0).nonzero().flatten().tolist() or [0]
        first, end = used[0], used[-1] + 1
        return [Segment((start, stop), (first, end), matrix=rows[:, first:end])]

    def copied(self, size: int) -> Sequence[int]:
        """The source entry that each of ``size`` target entries copies; ``FRESH``: none."""
        return (FRESH,) * size

    def after(self, first: Gather) -> Dense:
        """The map that applies ``first``, a plain gather, to the source and then this one."""
        matrix = torch.zeros_like(self.matrix)
        return Dense(matrix.index_add(1, torch.tensor(first.index), self.matrix))

    def to_power(self, power: int) -> Dense:
        """The map of squares of entries that are independent, for a ``power`` of 2."""
        if power == 1:
            return self
        if power == 2:
            return Dense(self.matrix.square())
        raise TypeError(f"a mix has no map of powers of {power}")


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

    def copied(self, size: int) -> Sequence[int]:
        """The source entry that each of ``size`` target entries copies; ``FRESH``: none."""
        kept = self.kept.index
        return (*kept, *(FRESH,) * (size - len(kept)))

    def to_power(self, power: int) -> MeanPadding:
        """Itself, for a ``power`` of 1; nothing carries more of the gradient of a mean."""
        if power == 1:
            return self
        raise TypeError(f"a mean has no map of powers of {power}")


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
    def noise(self) -> tuple[int, Noise] | None:
        """The axis along which noise is added, and which."""
        axes = enumerate(self.terms[0].axes if self.terms else ())
        found = ((i, axis.noise) for i, axis in axes if isinstance(axis, Gather) and axis.noise)
        return next(found, None)

    def old(self, axis: int) -> torch.Tensor:
        """Which entries along an axis the source had: of copies of one entry, the first is it.

        Returns:
            (size of the axis), bool.
        """
        size, seen = self.target.shape[axis], {FRESH}
        had = torch.zeros(size, dtype=torch.bool)
        for term in self.terms:
            if term.source != self.target.key:  # it begins as another tensor, and is new
                continue
            for entry, source in enumerate(term.axes[axis].copied(size)):
                had[entry] |= source not in seen
                seen.add(source)
        return had

    @cached_property
    def is_copy(self) -> bool:
        """Whether the target is the source, unchanged."""
        return len(self.terms) == 1 and all(isinstance(a, Identity) for a in self.terms[0].axes)


def identity(tensor: LogicalTensor) -> TensorMap:
    """The map that keeps ``tensor`` as it is."""
    return TensorMap(tensor, (Term(tensor.key, (Identity(),) * len(tensor.axes)),), tensor.init)


def all_fresh(tensor: LogicalTensor) -> TensorMap:
    """The map that draws on nothing: initial values."""
    return TensorMap(tensor, (), tensor.init)
