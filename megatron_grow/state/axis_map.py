"""What every map of a target axis from a source axis is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import torch

from megatron_grow.state.tensors import Init

FRESH = -1
"""An index that draws on no source entry."""


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

    def __post_init__(self) -> None:
        sizes = set(Counter(self.group).values()) - {1}
        if len(sizes) > 1:
            raise ValueError(f"noise needs groups of one size; these are of {sorted(sizes)}")


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


class AxisMap(ABC):
    """How a target axis is drawn from a source axis."""

    noise: Noise | None = None

    @abstractmethod
    def segments(self, start: int, stop: int) -> list[Segment]:
        """What entries ``start:stop`` need of the source axis."""

    @abstractmethod
    def check(self, source: int, target: int) -> None:
        """Raise :class:`ValueError`, saying what is wrong, if it is no map between these sizes."""

    @abstractmethod
    def copied(self, size: int) -> Sequence[int]:
        """The source entry that each of ``size`` target entries copies; ``FRESH``: none."""

    @abstractmethod
    def after(self, first: AxisMap) -> AxisMap:
        """The map that applies ``first``, which copies, to the source and then this one."""

    @abstractmethod
    def between(self, source: Sequence[int], target: Sequence[int]) -> AxisMap:
        """The same for some of the target's entries, which draw on some of the source's.

        An entry that copies none of these is fresh.

        Raises:
            ValueError: an entry mixes them with others.
        """

    @abstractmethod
    def shared(
        self, source: Sequence[int], target: Sequence[int], *, summed: bool = False
    ) -> AxisMap:
        """The same where some entries are one: between what is unique of the source and the target.

        Args:
            source: for each of its entries, the number of the unique one.
            target: the same.
            summed: what a unique entry has is a sum over those that are one, as its gradient is.

        Raises:
            ValueError: it draws entries of the target that are one in different ways.
        """

    @abstractmethod
    def to_power(self, power: int) -> AxisMap:
        """The map of a moment that carries a power of the gradient; what is fresh has no rule."""

    @abstractmethod
    def powers(self, rms: Sequence[float], start: int, stop: int) -> list[float | None]:
        """Mean squares of entries ``start:stop``; None where one is fresh.

        Args:
            rms: root mean squares of the source's entries, which are independent.
            start: first entry.
            stop: behind the last.
        """

    @property
    def drawn(self) -> frozenset[int]:
        """The source entries that some target entries copy; nothing for what draws on all."""
        return frozenset()

    def first_only(self, fresh: Init | None = None) -> AxisMap:
        """The same without duplicates: of entries that copy one, the first keeps it.

        Args:
            fresh: how the others are made; None: as any that are fresh.
        """
        return self

    def without(self, sources: Container[int]) -> AxisMap:
        """The same without copies of ``sources``."""
        return self

    def factors(self, start: int, stop: int) -> torch.Tensor:
        """What entries ``start:stop`` are multiplied by; fp64."""
        return torch.ones(stop - start, dtype=torch.float64)


def first_of_each(numbers: Sequence[int], alike: Callable[[int, int], bool]) -> list[int]:
    """The first entry that has each number.

    Raises:
        ValueError: another one with this number is not ``alike``.
    """
    firsts: dict[int, int] = {}
    for entry, number in enumerate(numbers):
        first = firsts.setdefault(number, entry)
        if not alike(first, entry):
            raise ValueError(f"{first} and {entry}")
    return [firsts[number] for number in sorted(firsts)]


def same_size(found: int, target: int) -> None:
    """Raise :class:`ValueError` unless a map for ``found`` entries has ``target``."""
    if found != target:
        raise ValueError(f"is for {found} entries, not {target}")
