"""How large a tensor's values are, to the same bits however they are cut and in any order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from math import frexp, inf, isfinite, nan, sqrt
from typing import Any

import torch

Layer = tuple[str, int]
"""Key of a tensor, and the layer."""
Slices = Iterable[tuple[Layer, torch.Tensor]]

# Values converted to fp64 at a time.
_AT_A_TIME = 1 << 20


def root_mean_squares(
    parts: Callable[[], Slices], everyone: Callable[[Callable[[], Any]], list[Any]]
) -> dict[str, tuple[float, ...]]:
    """Of each layer of some tensors, by key.

    Squares are rounded to so coarse a grid that 64-bit integers hold their sum, and integers add up
    alike in any order. The grid depends on the largest value, so that all are looked at twice.

    Args:
        parts: on each of two calls, what is at hand here of the layers; over all who take part,
            every value is there once.
        everyone: calls what it is given on all who take part; what each of them found.

    Returns:
        Not a number where a value is not finite.
    """
    sizes: dict[Layer, tuple[float, int]] = {}
    for found in everyone(lambda: _sizes(parts())):
        for layer, (largest, count) in found.items():
            so_far = sizes.get(layer, (0.0, 0))
            sizes[layer] = (max(largest, so_far[0]), count + so_far[1])
    grids = {layer: _grid(largest, count) for layer, (largest, count) in sizes.items()}
    totals: dict[Layer, int] = defaultdict(int)
    for found in everyone(lambda: _sums_of_squares(parts(), grids)):
        for layer, total in found.items():
            totals[layer] += total
    by_key: dict[str, list[float]] = defaultdict(list)
    for layer, (_, count) in sorted(sizes.items()):
        scale = grids[layer]
        by_key[layer[0]].append(nan if scale is None else sqrt(totals[layer] / count / scale))
    return {key: tuple(layers) for key, layers in by_key.items()}


def _sizes(parts: Slices) -> dict[Layer, tuple[float, int]]:
    """The largest value, and how many."""
    found: dict[Layer, tuple[float, int]] = {}
    for layer, values in parts:
        largest, count = found.get(layer, (0.0, 0))
        here = float(values.abs().max())
        found[layer] = (max(largest, here) if isfinite(here) else inf, count + values.numel())
    return found


def _sums_of_squares(parts: Slices, grids: dict[Layer, float | None]) -> dict[Layer, int]:
    found: dict[Layer, int] = defaultdict(int)
    for layer, values in parts:
        found[layer] += _sum_of_squares(values, grids[layer])
    return dict(found)


def _grid(largest: float, count: int) -> float | None:
    """A power of two that brings the sum of ``count`` squares just below 2^62."""
    if largest == inf:
        return None
    _, exponent = frexp(largest * largest * count)
    return 2.0 ** (62 - exponent)


def _sum_of_squares(values: torch.Tensor, scale: float | None) -> int:
    if scale is None:
        return 0
    return sum(
        int((part.double().square() * scale).round().long().sum())
        for part in values.reshape(-1).split(_AT_A_TIME)
    )
