"""Fresh values that do not depend on the layout.

Every value is a function of (seed, key, layer, position in the matrix) alone, so that any rank, or
the converter, makes any slice and gets the same bits.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import torch

from megatron_grow.state.boxes import Box, fold, full, intersect, shape_of, slices
from megatron_grow.state.memory import empty
from megatron_grow.state.tensors import Constant, Init, LogicalTensor

# Matrices are drawn in square tiles: small, so that a cut along either side wastes little, and
# large against the cost of starting a generator.
_TILE = 256
_TILES_OF_A_THREAD = 8
"""Fewer are drawn sooner than a thread starts: a tile takes half a millisecond."""


def fresh(
    tensor: LogicalTensor, box: Box, init: Init, seed: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Fresh values of ``tensor`` in ``box``.

    Args:
        tensor: what they are for.
        box: in its fine axes.
        init: their rule.
        seed: that of the run.
        out: written to and returned, if given; fp32, of the box's shape, on any device.

    Returns:
        fp32, of the shape of ``box``. Normal values come from numpy's SFC64 generator and ziggurat,
        plain C without vector variants, so that their bits do not depend on the processor.
    """
    out = empty(shape_of(box)) if out is None else out
    if isinstance(init, Constant):
        return out.fill_(init.value)
    values = out if out.is_cpu else empty(shape_of(box))
    for name, shape, windows in _matrices(tensor, box, values):
        _normal(f"{seed}/{name}", shape, windows)
    values.mul_(init.std)
    if init.parts:
        _multiply_parts(tensor, box, init.parts, values)
    return out if values is out else out.copy_(values)


def _multiply_parts(
    tensor: LogicalTensor, box: Box, factors: tuple[float, ...], values: torch.Tensor
) -> None:
    """Multiply what ``values`` has of each of the matrices that are fused in a tensor."""
    place = next(i for i, axis in enumerate(tensor.axes) if axis.fuses)
    entries = zip(factors, tensor.axes[place].fuses, strict=True)
    each = [factor for factor, count in entries for _ in range(count)][slice(*box[place])]
    values.mul_(torch.tensor(each).view([-1 if i == place else 1 for i in range(values.ndim)]))


_Window = tuple[Box, torch.Tensor]
"""A (rows, columns) box of a matrix, and the memory to fill with it."""


def _matrices(
    tensor: LogicalTensor, box: Box, values: torch.Tensor
) -> list[tuple[str, tuple[int, ...], list[_Window]]]:
    """The matrices, as Megatron's checkpoint has them, of which ``box`` is made.

    Returns:
        Of each its name, its (rows, columns), and the windows of it that ``values`` must hold.
    """
    stored = tensor.checkpoint_shape
    lead = max(len(stored) - 2, int(tensor.stacked))  # a layer, say: which matrix it is
    windows: dict[str, list[_Window]] = defaultdict(list)
    for fine, coarse in fold(tensor.shape, box, tensor.groups):
        out = values[slices(fine, box)].view(shape_of(coarse))
        for index in product(*(range(*extent) for extent in coarse[:lead])):
            where = tuple(i - start for i, (start, _) in zip(index, coarse, strict=False))
            matrix = out[where] if where else out
            rows_columns = coarse[lead:]
            if len(rows_columns) == 1:
                rows_columns, matrix = ((0, 1), *rows_columns), matrix[None]
            windows["/".join(map(str, (tensor.key, *index)))].append((rows_columns, matrix))
    shape = (1, *stored[lead:])[-2:]
    return [(name, shape, found) for name, found in windows.items()]


def _normal(name: str, shape: tuple[int, ...], windows: list[_Window]) -> None:
    """Fill ``windows`` of the standard normal matrix that ``name`` identifies."""
    wanted: dict[tuple[int, ...], list[_Window]] = defaultdict(list)
    for box, out in windows:
        for tile in product(*(range(start // _TILE, -(-stop // _TILE)) for start, stop in box)):
            wanted[tile].append((box, out))

    def draw(tile: tuple[int, ...], users: list[_Window]) -> None:
        # All of a tile is drawn, so that bits do not depend on who asks for which part.
        origin = tuple((i * _TILE, (i + 1) * _TILE) for i in tile)
        held = intersect(origin, full(shape))
        assert held is not None
        generator = _generator(f"{name}/{tile[0]}/{tile[1]}")
        drawn = generator.standard_normal(shape_of(held), dtype=np.float32)
        for box, out in users:
            common = intersect(box, held)
            assert common is not None
            # By numpy: torch would have threads of its own in each of these.
            out.numpy()[slices(common, box)] = drawn[slices(common, held)]

    threads = min(_cores(), len(wanted) // _TILES_OF_A_THREAD)
    if threads < 2:
        for tile, users in wanted.items():
            draw(tile, users)
        return
    with ThreadPoolExecutor(threads) as pool:  # numpy draws without the interpreter's lock
        for _ in pool.map(draw, wanted, wanted.values()):
            pass


def _cores() -> int:
    """Of this host, for each of the job's processes on it."""
    return len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _generator(name: str) -> np.random.Generator:
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.SFC64(key))
