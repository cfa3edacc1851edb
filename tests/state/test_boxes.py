"""Boxes against boolean masks and numpy's own reshape."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_grow.state.boxes import (
    Box,
    fold,
    from_flat_range,
    full,
    intersect,
    shape_of,
    slices,
    split,
    subtract,
    volume,
)

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@st.composite
def boxes_in(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    box = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        box.append((start, draw(st.integers(start + 1, size))))
    return tuple(box)


def mask(shape: tuple[int, ...], *boxes: Box) -> np.ndarray:
    """How many of ``boxes`` hold each element."""
    counts = np.zeros(shape, dtype=int)
    for box in boxes:
        counts[slices(box)] += 1
    return counts


@given(st.data(), shapes)
def test_intersection_and_difference(data: st.DataObject, shape: tuple[int, ...]) -> None:
    a, b = data.draw(boxes_in(shape)), data.draw(boxes_in(shape))
    both, rest = intersect(a, b), subtract(a, b)
    assert np.array_equal(mask(shape, *[both] if both else []), mask(shape, a) * mask(shape, b))
    # Counts, so that boxes of the difference which overlap would show.
    assert np.array_equal(mask(shape, *rest), mask(shape, a) * (1 - mask(shape, b)))


@given(st.data(), shapes, st.integers(1, 40))
def test_split_tiles_the_box_in_order(
    data: st.DataObject, shape: tuple[int, ...], most: int
) -> None:
    box = data.draw(boxes_in(shape))
    parts = list(split(box, most))
    assert np.array_equal(mask(shape, *parts), mask(shape, box))
    assert parts == sorted(parts)
    assert all(volume(part) <= most for part in parts)


@given(st.data(), shapes)
def test_flat_range_is_what_numpy_flattens(data: st.DataObject, shape: tuple[int, ...]) -> None:
    start = data.draw(st.integers(0, prod(shape)))
    stop = data.draw(st.integers(start, prod(shape)))
    values = np.arange(prod(shape)).reshape(shape)
    boxes = from_flat_range(shape, start, stop)
    found = [values[slices(box)].ravel() for box in boxes]
    assert np.array_equal(np.concatenate([[], *found]), np.arange(start, stop))
    assert len(boxes) <= 2 * len(shape) - 1


@given(st.data(), shapes)
def test_fold_is_a_reshape(data: st.DataObject, shape: tuple[int, ...]) -> None:
    """Folding runs of axes: each pair of boxes names the same elements, in the same order."""
    cuts = data.draw(st.lists(st.integers(0, len(shape)), max_size=3).map(sorted))
    bounds = [0, *cuts, len(shape)]
    groups = [b - a for a, b in pairwise(bounds)]
    coarse_shape = [prod(shape[a:b]) for a, b in pairwise(bounds)]
    box = data.draw(boxes_in(shape))
    fine_values = np.arange(prod(shape)).reshape(shape)
    coarse_values = fine_values.reshape(coarse_shape)
    pairs = fold(shape, box, groups)
    assert np.array_equal(mask(shape, *[fine for fine, _ in pairs]), mask(shape, box))
    for fine, coarse in pairs:
        assert np.array_equal(
            fine_values[slices(fine)].ravel(), coarse_values[slices(coarse)].ravel()
        )


def test_fold_does_not_cut_what_is_contiguous() -> None:
    """A tensor-parallel half of the QKV rows stays one range of the checkpoint's rows."""
    shape = (4, 2, 4, 8, 32)  # layer, kv_group, qkv_head, head_dim, hidden
    box = ((1, 2), (1, 2), (0, 4), (0, 8), (0, 32))
    assert fold(shape, box, (1, 3, 1)) == [(box, ((1, 2), (32, 64), (0, 32)))]


@given(st.data(), shapes)
def test_slices_relative_to_an_origin(data: st.DataObject, shape: tuple[int, ...]) -> None:
    origin = data.draw(boxes_in(shape))
    part = tuple(
        (low + inner[0], low + inner[1])
        for (low, _), inner in zip(origin, data.draw(boxes_in(shape_of(origin))), strict=True)
    )
    values = np.arange(prod(shape)).reshape(shape)
    assert np.array_equal(values[slices(origin)][slices(part, origin)], values[slices(part)])


def test_full_covers_everything() -> None:
    assert np.array_equal(mask((2, 3), full((2, 3))), np.ones((2, 3)))
    assert volume(full((2, 3))) == 6
