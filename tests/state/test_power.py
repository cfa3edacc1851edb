"""Root mean squares: right, and the same bits however a tensor is cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_grow.state.power import root_mean_squares


def by_ranks(layers: np.ndarray, cuts: list[int], ranks: int) -> list[float]:
    """Parts of each layer, dealt to ranks that gather."""
    parts = [
        (("w", layer), torch.from_numpy(layers[layer, a:b]))
        for layer in range(len(layers))
        for a, b in pairwise([0, *sorted(cuts), layers.shape[1]])
        if b > a
    ]
    barrier, board = Barrier(ranks), [None] * ranks

    def found(rank: int) -> list[float]:
        def everyone(measure: Callable[[], Any]) -> list[Any]:
            board[rank] = measure()
            barrier.wait()
            answers = list(board)
            barrier.wait()
            return answers

        return list(root_mean_squares(lambda: parts[rank::ranks], everyone)["w"])

    with ThreadPoolExecutor(ranks) as pool:
        answers = list(pool.map(found, range(ranks)))
    assert all(str(other) == str(answers[0]) for other in answers)
    return answers[0]


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 300), max_size=5),
    st.integers(1, 4),
    st.sampled_from([1e-20, 1e-3, 1.0, 1e15]),
)
def test_cuts_do_not_matter(seed: int, cuts: list[int], ranks: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    layers = (generator.standard_normal((2, 300)) * scale).astype(np.float32)
    found = by_ranks(layers, cuts, ranks)
    assert found == by_ranks(layers, [], 1)
    truth = np.sqrt(np.square(layers.astype(np.float64)).mean(1))
    assert found == pytest.approx(truth.tolist(), rel=1e-12)


def test_nothing_and_what_is_not_finite() -> None:
    layers = np.zeros((3, 8), np.float32)
    layers[1, 3], layers[2, 0] = np.inf, np.nan
    zero, *others = by_ranks(layers, [4], 2)
    assert zero == 0.0
    assert all(math.isnan(value) for value in others)
