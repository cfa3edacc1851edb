"""Maps of an axis that mix entries: all of them, or behind copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum

import torch

from megatron_grow.state.axis_map import FRESH, AxisMap, Segment, first_of_each, same_size
from megatron_grow.state.axis_maps import Gather


@dataclass(frozen=True)
class Dense(AxisMap):
    """Entry i of the target axis is a linear mix, row i of ``matrix``, of the source axis."""

    matrix: torch.Tensor  # (target, source)

    def segments(self, start: int, stop: int) -> list[Segment]:
        """The range of the source axis with weights in it."""
        rows = self.matrix[start:stop]
        used = rows.any(0).nonzero().flatten().tolist() or [0]
        first, end = used[0], used[-1] + 1
        return [Segment((start, stop), (first, end), matrix=rows[:, first:end])]

    def check(self, source: int, target: int) -> None:
        """A finite weight for each pair."""
        same_size(len(self.matrix), target)
        if self.matrix.shape[1] != source:
            raise ValueError(f"mixes {self.matrix.shape[1]} entries, not {source}")
        if not self.matrix.isfinite().all():
            raise ValueError("has a weight that is not finite")

    def copied(self, size: int) -> Sequence[int]:
        """None."""
        return (FRESH,) * size

    def after(self, first: AxisMap) -> Dense:
        """A mix of what is copied."""
        index = torch.tensor(first.copied(self.matrix.shape[1]))
        kept = index != FRESH
        matrix = self.matrix.new_zeros(len(self.matrix), int(index.max()) + 1)
        return Dense(matrix.index_add(1, index[kept], self.matrix[:, kept]))

    def between(self, source: Sequence[int], target: Sequence[int]) -> Dense:
        """The rows and columns."""
        rows = self.matrix[list(target)]
        if rows[:, [i for i in range(rows.shape[1]) if i not in source]].any():
            raise ValueError("a mix of entries that are not all there")
        return Dense(rows[:, list(source)])

    def shared(
        self, source: Sequence[int], target: Sequence[int], *, summed: bool = False
    ) -> Dense:
        """Weights of what is one add up."""
        matrix = self.matrix.new_zeros(len(self.matrix), max(source) + 1)
        matrix.index_add_(1, torch.tensor(source), self.matrix)
        matrix = matrix[first_of_each(target, lambda a, b: torch.equal(matrix[a], matrix[b]))]
        if summed:
            of_source, of_target = (torch.bincount(torch.tensor(x)) for x in (source, target))
            matrix = matrix * of_target[:, None] / of_source
        return Dense(matrix)

    def to_power(self, power: int) -> Dense:
        """Powers of the weights, as for entries that are independent."""
        return Dense(self.matrix.pow(power))

    def powers(self, rms: Sequence[float], start: int, stop: int) -> list[float | None]:
        """Sums of those of what is mixed."""
        rows = self.matrix[start:stop].tolist()
        return [fsum((m * x) ** 2 for m, x in zip(row, rms, strict=True)) for row in rows]


@dataclass(frozen=True)
class Padded(AxisMap):
    """The entries of ``kept``, and behind them the one of ``rest``, again and again."""

    kept: Gather
    rest: Dense
    """A mix of one row."""

    def segments(self, start: int, stop: int) -> list[Segment]:
        """Those of the two."""
        end = len(self.kept.index)
        found = self.kept.segments(start, min(stop, end)) if start < end else []
        if stop > end:
            (rest,) = self.rest.segments(0, 1)
            found.append(replace(rest, target=(max(start, end), stop)))
        return found

    def check(self, source: int, target: int) -> None:
        """Both."""
        self.kept.check(source, min(len(self.kept.index), target))
        self.rest.check(source, 1)

    def copied(self, size: int) -> Sequence[int]:
        """What is kept."""
        return (*self.kept.index, *(FRESH,) * (size - len(self.kept.index)))

    def after(self, first: AxisMap) -> Padded:
        """Both after it."""
        return Padded(self.kept.after(first), self.rest.after(first))

    def between(self, source: Sequence[int], target: Sequence[int]) -> AxisMap:
        """Not needed: layers are copied or mixed, not padded."""
        raise ValueError("padding is for axes that all layers have")

    def shared(
        self, source: Sequence[int], target: Sequence[int], *, summed: bool = False
    ) -> AxisMap:
        """Not needed: only layers can be one."""
        raise ValueError("padding is for axes that all layers have")

    def to_power(self, power: int) -> Padded:
        """Of both."""
        return Padded(self.kept.to_power(power), self.rest.to_power(power))

    def powers(self, rms: Sequence[float], start: int, stop: int) -> list[float | None]:
        """Of both."""
        end = len(self.kept.index)
        padding = max(0, stop - max(start, end))
        kept = self.kept.powers(rms, min(start, end), min(stop, end))
        return kept + self.rest.powers(rms, 0, 1) * padding


def mean(count: int) -> Dense:
    """The mean of the source's first ``count`` entries, as one entry."""
    return Dense(torch.full((1, count), 1 / count, dtype=torch.float64))
