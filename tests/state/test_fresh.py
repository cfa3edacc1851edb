"""Fresh values: functions of (seed, key, layer, position) alone, with the right distribution."""

from __future__ import annotations

from math import prod, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_grow.state.axes import LAYER, Axis, AxisRule, Role
from megatron_grow.state.boxes import full, slices
from megatron_grow.state.fresh import fresh
from megatron_grow.state.tensors import Constant, LogicalTensor, Normal
from tests.state.test_boxes import boxes_in

SEED = 1234


def tensor(
    shape: tuple[int, ...],
    stacked: bool,
    key: str = "weight",
    groups: tuple[int, ...] | None = None,
) -> LogicalTensor:
    first = LAYER if stacked else AxisRule("rows")
    rules = [first, *(AxisRule(f"axis{i}") for i in range(1, len(shape)))]
    axes = tuple(Axis(r, size, Role.INDEX) for r, size in zip(rules, shape, strict=True))
    return LogicalTensor(key, axes, groups or (1,) * len(shape), Normal(1.0))


def values(
    shape: tuple[int, ...] = (4, 300, 500),
    stacked: bool = True,
    key: str = "weight",
    seed: int = SEED,
    std: float = 1.0,
) -> torch.Tensor:
    return fresh(tensor(shape, stacked, key), full(shape), Normal(std), seed)


_WHOLE: dict[tuple[int, ...], torch.Tensor] = {}

# Each crosses the generator's tiles, in layers, in rows and columns, and in one long row.
LARGE = [
    ((3, 400, 400), True, (1, 1, 1)),
    ((900, 300), False, (1, 1)),
    ((2, 3, 70_000), True, (1, 1, 1)),
    ((70_000,), False, (1,)),
    ((2, 6, 5, 20, 300), True, (1, 3, 1)),  # a QKV projection's rows
    ((2, 300, 6, 3, 20), True, (1, 1, 3)),  # an output projection's columns
    ((2, 3, 300, 40), True, (1, 1, 1, 1)),  # a matrix for each of two leading axes
]


@pytest.mark.parametrize(("shape", "stacked", "groups"), LARGE)
@settings(max_examples=15)
@given(st.data())
def test_any_slice_is_the_slice_of_the_whole(
    shape: tuple[int, ...], stacked: bool, groups: tuple[int, ...], data: st.DataObject
) -> None:
    box = data.draw(boxes_in(shape))
    target = tensor(shape, stacked, groups=groups)
    if shape not in _WHOLE:
        _WHOLE[shape] = fresh(target, full(shape), Normal(1.0), SEED)
    whole = _WHOLE[shape]
    assert torch.equal(fresh(target, box, Normal(1.0), SEED), whole[slices(box)])


def test_the_bits_are_pinned() -> None:
    """Another process, machine or version makes the same weights; runs rely on it."""
    pinned = values((2, 3, 4), std=0.02)[1, 2]
    expected = [
        0.0021331480238586664,
        0.004213374108076096,
        0.01712636835873127,
        -0.003950618673115969,
    ]
    assert pinned.tolist() == expected
    assert torch.equal(values((5, 3, 4), std=0.02)[1, 2], pinned)  # whatever the depth


def test_threads_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for cores in (1, 3):
        monkeypatch.setattr("megatron_grow.state.fresh._cores", lambda cores=cores: cores)
        drawn.append(values((1, 1300, 1300)))  # 36 tiles
    assert torch.equal(*drawn)


def test_moments_and_tails_of_the_normal() -> None:
    sample = values(std=0.02).double() / 0.02
    n = prod(sample.shape)
    # Standard errors of the mean, the variance and the kurtosis of n independent normal values.
    assert abs(sample.mean().item()) < 4 / sqrt(n)
    assert abs(sample.var().item() - 1) < 4 * sqrt(2 / n)
    assert abs((sample**4).mean().item() - 3) < 4 * sqrt(96 / n)
    assert (sample.abs() > 1.959964).double().mean().item() == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("other", ["layer", "key", "seed"])
def test_what_differs_is_independent(other: str) -> None:
    shape = (2, 200, 200)
    first = values(shape)
    second = {
        "layer": lambda: first.flip(0),
        "key": lambda: values(shape, key="bias"),
        "seed": lambda: values(shape, seed=SEED + 1),
    }[other]()
    correlation = torch.corrcoef(torch.stack([first.ravel(), second.ravel()]))[0, 1].item()
    # Layers are compared in both orders, so half of the pairs are independent.
    assert abs(correlation) < 4 / sqrt(first.numel() / 2)


def test_rows_and_tiles_do_not_repeat() -> None:
    rows = values((1, 2000, 100))[0]
    assert len(rows.unique(dim=0)) == 2000


def test_constant() -> None:
    made = fresh(tensor((4, 3), True), ((1, 3), (0, 2)), Constant(1.0), SEED)
    assert torch.equal(made, torch.ones(2, 2))
    assert made.dtype == torch.float32
