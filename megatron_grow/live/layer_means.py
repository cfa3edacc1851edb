"""Means of a model's numbers, tensor by tensor and layer by layer, over all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import NamedTuple

import torch

from megatron_grow.parallel.agreement import gather, reduced


class Entry(NamedTuple):
    """What a mean is of."""

    quantity: str
    """``weight``, ``gradient``, ``activation`` and so on."""
    name: str
    """A tensor's key, or a place in the model."""
    layer: int | None
    """Of the model; None: of no layer."""


class Sum(NamedTuple):
    """What a rank adds to a mean."""

    total: float
    """Of values, or of their squares."""
    number: int
    """Of them."""


class LayerMeans:
    """Adds up what ranks know of each entry.

    Those that hold different parts of a tensor have different sums. Those that hold the same of an
    activation have the same sums and counts, which leaves the mean as it is.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        """Agree on all that ranks have; ``entries`` are this one's. Every rank takes part."""
        union = {*chain.from_iterable(gather([*entries]))}
        self._entries = sorted(union, key=lambda entry: (*entry[:2], entry.layer or 0))

    def over_ranks(self, sums: Mapping[Entry, Sum]) -> dict[Entry, float]:
        """The mean of each entry that anything was counted of; in fp64, in one reduction.

        Every rank takes part.

        Args:
            sums: of this rank.
        """
        nothing = Sum(0.0, 0)
        both = torch.tensor(
            [sums.get(entry, nothing) for entry in self._entries], dtype=torch.float64
        )
        found = zip(self._entries, reduced(both, "sum").tolist(), strict=True)
        return {entry: total / count for entry, (total, count) in found if count}
