"""How much a rank sends and receives in one round of a growth."""

from __future__ import annotations

from collections.abc import Iterable

from megatron_grow.state.boxes import full, volume
from megatron_grow.state.tensors import LogicalTensor

_LEAST, _MOST = 1 << 21, 1 << 25
"""Bounds of :func:`budget`."""


def budget(tensors: Iterable[LogicalTensor]) -> int:
    """Values that a rank sends and receives in a round, at most about.

    Half of what a layer has, whole, in its parameters and two moments: beside the source and the
    target a rank never holds more than about one layer.
    """
    layer = sum(volume(full(t.shape)) // t.shape[0] for t in tensors if t.stacked)
    return min(max(3 * layer // 2, _LEAST), _MOST)
