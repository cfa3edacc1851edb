"""Boxes: rectangular index ranges of a tensor, the unit in which state is cut, moved and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import prod

Box = tuple[tuple[int, int], ...]
"""One half-open ``(start, stop)`` for each axis."""


def full(shape: Sequence[int]) -> Box:
    """The box that covers a tensor of ``shape``."""
    return tuple((0, size) for size in shape)


def shape_of(box: Box) -> tuple[int, ...]:
    """Extent of ``box`` along each axis."""
    return tuple(stop - start for start, stop in box)


def volume(box: Box) -> int:
    """Number of elements in ``box``."""
    return prod(shape_of(box))


def intersect(a: Box, b: Box) -> Box | None:
    """The elements in both boxes; None if there are none."""
    both = tuple((max(x, u), min(y, v)) for (x, y), (u, v) in zip(a, b, strict=True))
    return both if all(start < stop for start, stop in both) else None


def subtract(a: Box, b: Box) -> list[Box]:
    """The elements of ``a`` that are not in ``b``, as disjoint boxes."""
    common = intersect(a, b)
    if common is None:
        return [a]
    rest = []
    remaining = list(a)
    for axis, (start, stop) in enumerate(common):
        before, after = remaining[axis]
        if before < start:
            rest.append((*remaining[:axis], (before, start), *remaining[axis + 1 :]))
        if stop < after:
            rest.append((*remaining[:axis], (stop, after), *remaining[axis + 1 :]))
        remaining[axis] = (start, stop)
    return rest


def union(boxes: Iterable[Box]) -> list[Box]:
    """The elements of ``boxes``, as disjoint boxes."""
    apart: list[Box] = []
    for box in boxes:
        parts = [box]
        for other in apart:
            parts = [rest for part in parts for rest in subtract(part, other)]
        apart += parts
    return apart


def slices(box: Box, origin: Box | None = None) -> tuple[slice, ...]:
    """Index ``box`` in a tensor that starts at the origin, or holds the box ``origin``."""
    offsets = [start for start, _ in origin] if origin else [0] * len(box)
    return tuple(slice(a - o, b - o) for (a, b), o in zip(box, offsets, strict=True))


def split(box: Box, most: int) -> Iterator[Box]:
    """Cut ``box`` along its leading axes into boxes of at most ``most`` elements, in order.

    Cuts lie a power of two apart, as do those of most layouts.
    """
    if volume(box) <= most or all(stop - start == 1 for start, stop in box):
        yield box
        return
    axis = next(i for i, (start, stop) in enumerate(box) if stop - start > 1)
    start, stop = box[axis]
    step = max(1, (stop - start) * most // volume(box))
    step = 1 << (step.bit_length() - 1)
    for begin in range(start, stop, step):
        part = (*box[:axis], (begin, min(begin + step, stop)), *box[axis + 1 :])
        yield from split(part, most)


def from_flat_range(shape: Sequence[int], start: int, stop: int) -> list[Box]:
    """The boxes that make up elements ``start:stop`` of a row-major tensor, in that order.

    Each box is itself contiguous in memory; there are at most ``2 x ndim - 1`` of them.
    """
    if start >= stop:
        return []
    if len(shape) == 1:
        return [((start, stop),)]
    inner = prod(shape[1:])
    first, last = start // inner, (stop - 1) // inner

    def part(row: int, begin: int, end: int) -> list[Box]:
        return [((row, row + 1), *box) for box in from_flat_range(shape[1:], begin, end)]

    if first == last:
        if stop - start == inner:
            return [((first, first + 1), *full(shape[1:]))]
        return part(first, start - first * inner, stop - first * inner)
    boxes: list[Box] = []
    if start > first * inner:
        boxes += part(first, start - first * inner, inner)
        first += 1
    tail = stop - last * inner
    whole = last + 1 if tail == inner else last
    if first < whole:
        boxes.append(((first, whole), *full(shape[1:])))
    if tail < inner:
        boxes += part(last, 0, tail)
    return boxes


def fold(shape: Sequence[int], box: Box, groups: Sequence[int]) -> list[tuple[Box, Box]]:
    """Express ``box`` in a coarser view of the tensor, where runs of axes are folded into one.

    Args:
        shape: sizes of the fine axes.
        box: in fine axes.
        groups: how many fine axes make each coarse axis.

    Returns:
        Pairs (fine box, coarse box). A coarse range must be contiguous, so a box that takes part of
        an inner axis is cut into several.
    """
    per_group: list[list[tuple[Box, tuple[int, int]]]] = []
    axis = 0
    for count in groups:
        sizes, part = shape[axis : axis + count], box[axis : axis + count]
        per_group.append([(fine, _flat_range(sizes, fine)) for fine in _contiguous(sizes, part)])
        axis += count
    return [
        (sum((fine for fine, _ in choice), ()), tuple(coarse for _, coarse in choice))
        for choice in product(*per_group)
    ]


def _contiguous(sizes: Sequence[int], box: Box) -> list[Box]:
    """Cut ``box`` into boxes that are contiguous in row-major order."""
    # Axes after `pivot` are whole; those before it are taken one index at a time.
    pivot = len(sizes) - 1
    while pivot > 0 and box[pivot] == (0, sizes[pivot]):
        pivot -= 1
    leading = [range(start, stop) for start, stop in box[:pivot]]
    return [(*((i, i + 1) for i in index), *box[pivot:]) for index in product(*leading)]


def _flat_range(sizes: Sequence[int], box: Box) -> tuple[int, int]:
    start = 0
    for size, (begin, _) in zip(sizes, box, strict=True):
        start = start * size + begin
    return start, start + volume(box)
