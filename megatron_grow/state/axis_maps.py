"""Maps of an axis that copy: all entries, or one for each of the target's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod

import torch

from megatron_grow.state.axis_map import FRESH, AxisMap, Noise, Segment, first_of_each, same_size
from megatron_grow.state.tensors import ZERO, Init

# A gather of more runs than this over one slice reads the range that spans them, once.
_MOST_RUNS = 8


@dataclass(frozen=True)
class Identity(AxisMap):
    """The target axis is the source axis."""

    def segments(self, start: int, stop: int) -> list[Segment]:
        """The same entries."""
        return [Segment((start, stop), (start, stop))]

    def check(self, source: int, target: int) -> None:
        """Of one size."""
        if source != target:
            raise ValueError(f"keeps {source} entries, which become {target}")

    def copied(self, size: int) -> Sequence[int]:
        """Each its own."""
        return range(size)

    def after(self, first: AxisMap) -> AxisMap:
        """The first."""
        return first

    def between(self, source: Sequence[int], target: Sequence[int]) -> Gather:
        """Those that are in both."""
        place = {entry: i for i, entry in enumerate(source)}
        return Gather(tuple(place.get(entry, FRESH) for entry in target))

    def shared(
        self, source: Sequence[int], target: Sequence[int], *, summed: bool = False
    ) -> Gather:
        """Entry for entry."""
        return Gather(tuple(range(len(target)))).shared(source, target, summed=summed)

    def to_power(self, power: int) -> Identity:
        """Itself."""
        return self

    def powers(self, rms: Sequence[float], start: int, stop: int) -> list[float | None]:
        """The source's."""
        return [each**2 for each in rms[start:stop]]


@dataclass(frozen=True)
class Gather(AxisMap):
    """Entry i of the target axis is ``scale[i]`` times entry ``index[i]`` of the source axis."""

    index: tuple[int, ...]
    scale: tuple[float, ...] | None = None
    fresh: Init | None = None
    """Rule for entries of index ``FRESH``; None: the tensor's own."""
    zero: tuple[int, ...] = ()
    """Entries of index ``FRESH`` that are zero, whatever the rule for others."""
    noise: Noise | None = None

    def segments(self, start: int, stop: int) -> list[Segment]:
        """Runs of consecutive source entries, and fresh runs."""
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

    def check(self, source: int, target: int) -> None:
        """An entry of the source for each of the target, and a finite factor."""
        same_size(len(self.index), target)
        low, high = min(self.index, default=FRESH), max(self.index, default=FRESH)
        if low < FRESH or high >= source:
            wrong = low if low < FRESH else high
            raise ValueError(f"copies entry {wrong} of {source} (0 to {source - 1}; -1 is fresh)")
        if self.scale is not None:
            if len(self.scale) != target:
                raise ValueError(f"has {len(self.scale)} factors for {target} entries")
            if not all(map(isfinite, self.scale)):
                raise ValueError("has a factor that is not finite")
        if self.noise is not None and len(self.noise.group) != target:
            raise ValueError(f"has groups for {len(self.noise.group)} of {target} entries")

    def copied(self, size: int) -> Sequence[int]:
        """The index."""
        return self.index

    def after(self, first: AxisMap) -> Gather:
        """Copies of copies."""
        copied = first.copied(max(self.index) + 1)
        index = tuple(FRESH if i == FRESH else copied[i] for i in self.index)
        return replace(self, index=index)

    def between(self, source: Sequence[int], target: Sequence[int]) -> Gather:
        """Those of which the copied entry is among ``source``."""
        place = {entry: i for i, entry in enumerate(source)}
        return replace(
            self,
            index=tuple(place.get(self.index[entry], FRESH) for entry in target),
            scale=self.scale and tuple(self.scale[entry] for entry in target),
            zero=tuple(i for i, entry in enumerate(target) if entry in self.zero),
        )

    def shared(
        self, source: Sequence[int], target: Sequence[int], *, summed: bool = False
    ) -> Gather:
        """Copies of what is unique."""
        index = tuple(FRESH if i == FRESH else source[i] for i in self.index)
        scale = self.scale or (1.0,) * len(index)
        rows = [*zip(index, scale, (i in self.zero for i in range(len(index))), strict=True)]
        kept = first_of_each(target, lambda a, b: rows[a] == rows[b])
        factors = [scale[entry] for entry in kept]
        if summed:
            of_source, of_target = Counter(source), Counter(target)
            for unique, entry in enumerate(kept):
                if index[entry] != FRESH:
                    factors[unique] *= of_target[unique] / of_source[index[entry]]
        return replace(
            self,
            index=tuple(index[entry] for entry in kept),
            scale=None if set(factors) == {1.0} else tuple(factors),
            zero=tuple(unique for unique, entry in enumerate(kept) if entry in self.zero),
        )

    def to_power(self, power: int) -> Gather:
        """Powers of the scales."""
        scale = self.scale and tuple(prod([factor] * power) for factor in self.scale)
        return replace(self, scale=scale, fresh=None)

    def powers(self, rms: Sequence[float], start: int, stop: int) -> list[float | None]:
        """Those of what is copied."""
        factors = self.factors(start, stop).tolist()
        return [
            None if i == FRESH else (rms[i] * factor) ** 2
            for i, factor in zip(self.index[start:stop], factors, strict=True)
        ]

    @property
    def drawn(self) -> frozenset[int]:
        """Those of the index."""
        return frozenset(self.index) - {FRESH}

    def first_only(self, fresh: Init | None = None) -> Gather:
        """As for any map."""
        seen: set[int] = set()
        index = []
        for source in self.index:
            index.append(FRESH if source in seen else source)
            seen.add(source)
        return replace(self, index=tuple(index), fresh=fresh or self.fresh)

    def without(self, sources: Container[int]) -> Gather:
        """As for any map."""
        return replace(self, index=tuple(FRESH if i in sources else i for i in self.index))

    def factors(self, start: int, stop: int) -> torch.Tensor:
        """The scales."""
        scales = self._scales(start, stop)
        return super().factors(start, stop) if scales is None else scales

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
        return ZERO if i in self.zero else self.fresh

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
