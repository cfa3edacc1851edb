"""Answers about weights: right, and the same bits however a tensor is cut and dealt."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from threading import Barrier
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_grow.state.axes import FFN, HIDDEN, LAYER, Axis, Role
from megatron_grow.state.boxes import slices
from megatron_grow.state.questions import Question, answer
from megatron_grow.state.tensors import Constant, LogicalTensor

RULES = (LAYER, HIDDEN, FFN)
NAMES = tuple(rule.name for rule in RULES)


def question(shape: tuple[int, ...], along: tuple[str, ...]) -> Question:
    axes = tuple(Axis(rule, size, Role.INDEX) for rule, size in zip(RULES, shape, strict=True))
    return Question(LogicalTensor("w", axes, (1, 1, 1), Constant(0.0)), along)


def by_ranks(
    values: np.ndarray, along: tuple[str, ...], cuts: list[list[int]], ranks: int
) -> torch.Tensor:
    """Boxes between cuts along each axis, dealt to ranks that find the largest and the sum."""
    asked = question(values.shape, along)
    edges = [
        pairwise(sorted({0, *(c for c in cut if c < size), size}))
        for cut, size in zip(cuts, values.shape, strict=True)
    ]
    boxes = list(product(*edges))
    parts = [(box, torch.from_numpy(values[slices(box)])) for box in boxes]
    barrier, board = Barrier(ranks), [torch.zeros(())] * ranks

    def found(rank: int) -> torch.Tensor:
        def everyone(
            measure: Callable[[], torch.Tensor], how: Literal["max", "sum"]
        ) -> torch.Tensor:
            board[rank] = measure()
            barrier.wait()
            every = torch.stack(list(board))
            barrier.wait()
            return every.amax(0) if how == "max" else every.sum(0)

        return answer(asked, lambda: parts[rank::ranks], everyone)

    with ThreadPoolExecutor(ranks) as pool:
        first, *others = pool.map(found, range(ranks))
    assert all(str(other.tolist()) == str(first.tolist()) for other in others)
    return first


ALONG = [("layer",), ("ffn",), ("layer", "ffn"), ("ffn", "layer"), (), NAMES]


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.lists(st.integers(1, size), max_size=2) for size in (3, 10, 20)]),
    st.integers(1, 4),
    st.sampled_from([1e-20, 1e-3, 1.0, 1e15]),
    st.sampled_from(ALONG),
)
def test_cuts_do_not_matter(
    seed: int, cuts: tuple[list[int], ...], ranks: int, scale: float, along: tuple[str, ...]
) -> None:
    generator = np.random.default_rng(seed)
    values = (generator.standard_normal((3, 10, 20)) * scale).astype(np.float32)
    found = by_ranks(values, along, list(cuts), ranks)
    assert torch.equal(found, by_ranks(values, along, [[], [], []], 1))
    others = tuple(i for i, name in enumerate(NAMES) if name not in along)
    truth = np.sqrt(np.square(values.astype(np.float64)).mean(others))
    assert found.dtype == torch.float64 and found.shape == truth.shape
    np.testing.assert_allclose(found.numpy(), truth, rtol=1e-12)


def test_nothing_and_what_is_not_finite() -> None:
    values = np.zeros((3, 2, 4), np.float32)
    values[1, 1, 3], values[2, 0, 0] = np.inf, np.nan
    zero, *others = by_ranks(values, ("layer",), [[], [1], []], 2).tolist()
    assert zero == 0.0
    assert all(math.isnan(value) for value in others)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_equal_values_have_themselves_as_their_mean(size: int) -> None:
    """0.1 in fp32 is none of fp64's short numbers."""
    values = np.full((2, 1, size), 0.1, np.float32)
    assert by_ranks(values, ("layer",), [[], [], []], 1).tolist() == pytest.approx(
        [float(np.float32(0.1))] * 2, rel=1e-15
    )


def test_an_axis_that_a_tensor_has_not() -> None:
    tensor = LogicalTensor("key", (Axis(FFN, 2, Role.PRODUCES),), (1,), Constant(0.0))
    with pytest.raises(ValueError, match=r"key has no axis fnn; it has \['ffn'\]"):
        Question(tensor, ("fnn",))
