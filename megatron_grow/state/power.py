"""How large a tensor's values are, to the same bits however they are cut and in any order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from math import frexp, inf, isfinite, nan, sqrt
from typing import Any

import torch

Layer = tuple[str, int]
"""Key of a tensor, and the layer."""
Parts = Iterable[tuple[Layer, torch.Tensor]]

# Values converted to fp64 at a time.
_PART = 1 << 20


def root_mean_squares(
    parts: Callable[[], Parts], gather: Callable[[Any], list[Any]]
) -> dict[str, tuple[float, ...]]:
    """Of each layer of some tensors, by key.

    Squares are rounded to so coarse a grid that 64-bit integers hold their sum, and integers add up
    alike in any order. The grid depends on the largest value, so that all are looked at twice.

    Args:
        parts: on each of two calls, what is at hand here of the layers; over all who gather, every
            value is there once.
        gather: gives to each what all of them have.

    Returns:
        Not a number where a value is not finite.
    """
    mine: dict[Layer, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for layer, values in parts():
        largest, count = mine[layer]
        here = float(values.abs().max())
        mine[layer] = (max(largest, here) if isfinite(here) else inf, count + values.numel())
    sizes: dict[Layer, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for held in gather(dict(mine)):
        for layer, (largest, count) in held.items():
            sizes[layer] = (max(largest, sizes[layer][0]), count + sizes[layer][1])
    sums: dict[Layer, int] = defaultdict(int)
    for layer, values in parts():
        sums[layer] += _sum_of_squares(values, _grid(*sizes[layer]))
    totals: dict[Layer, int] = defaultdict(int)
    for held in gather(dict(sums)):
        for layer, total in held.items():
            totals[layer] += total
    found: dict[str, list[float]] = defaultdict(list)
    for layer, (largest, count) in sorted(sizes.items()):
        scale = _grid(largest, count)
        mean = nan if scale is None else totals[layer] / count / scale
        found[layer[0]].append(sqrt(mean))
    return {key: tuple(layers) for key, layers in found.items()}


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
        for part in values.reshape(-1).split(_PART)
    )
