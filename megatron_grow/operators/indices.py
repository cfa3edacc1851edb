"""Which source entry each target entry copies, and what each copy gets of a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from megatron_grow.state.axis_map import FRESH


def cyclic(source: int, target: int) -> tuple[int, ...]:
    """0 1 2 -> 0 1 2 0 1 2 0."""
    return tuple(i % source for i in range(target))


def random_map(source: int, target: int, seed: int) -> tuple[int, ...]:
    """The source in order, then random entries of it (Net2Net, bert2BERT's FPI)."""
    more = np.random.default_rng(seed).integers(0, source, target - source)
    return (*range(source), *more.tolist())


def padded(source: int, target: int) -> tuple[int, ...]:
    """The source in order, then fresh entries."""
    return (*range(source), *[FRESH] * (target - source))


def even_shares(index: Sequence[int]) -> tuple[float, ...]:
    """Of n copies, each gets 1/n."""
    copies = Counter(index)
    return tuple(1 / copies[i] for i in index)


def uneven_shares(index: Sequence[int], first: float) -> tuple[float, ...]:
    """Of several copies the first gets ``first``, and the others the same parts of the rest."""
    copies, seen = Counter(index), set()
    shares = []
    for i in index:
        rest = (1 - first) / max(copies[i] - 1, 1)
        shares.append(1.0 if copies[i] == 1 else rest if i in seen else first)
        seen.add(i)
    return tuple(shares)


def interpolation(source: int, target: int) -> torch.Tensor:
    """(target, source): each row draws on the two source entries next to it."""
    place = torch.linspace(0, source - 1, target, dtype=torch.float64)
    distance = (place[:, None] - torch.arange(source, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0)
