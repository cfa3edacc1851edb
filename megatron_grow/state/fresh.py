"""Fresh values that do not depend on the layout.

Every value is a function of (seed, key, layer, position in the tensor) alone, so that any rank, or
the converter, makes any slice and gets the same bits.
"""

from __future__ import annotations

import hashlib
from math import prod

import numpy as np
import torch

from megatron_grow.state.axes import Constant, Init, LogicalTensor
from megatron_grow.state.boxes import Box, fold, shape_of

# Rows are drawn in tiles of about this many values: small, so that a slice wastes little, and large
# against the cost of starting a generator.
_TILE = 1 << 16


def fresh(tensor: LogicalTensor, box: Box, init: Init, seed: int) -> torch.Tensor:
    """Fresh values of ``tensor`` in ``box``.

    Returns:
        fp32 on the CPU, of the shape of ``box``. Normal values come from numpy's Philox generator
        and ziggurat, plain C without vector variants, so that their bits do not depend on the
        processor.
    """
    if isinstance(init, Constant):
        return torch.full(shape_of(box), init.value)
    values = torch.empty(shape_of(box))
    if tensor.stacked:
        for i, layer in enumerate(range(*box[0])):
            _normal(values[i], tensor.shape[1:], box[1:], f"{seed}/{tensor.key}/{layer}")
    else:
        _normal(values, tensor.shape, box, f"{seed}/{tensor.key}")
    return values.mul_(init.std)


def _normal(out: torch.Tensor, shape: tuple[int, ...], box: Box, name: str) -> None:
    """Fill ``out`` with the part ``box`` of the standard normal tensor that ``name`` identifies."""
    columns = shape[-1]
    first_column, last_column = box[-1]
    rows_per_tile = max(1, _TILE // columns)
    flat = out.view(-1, last_column - first_column)  # (rows, columns) of the box, in its own order
    done, number, drawn = 0, -1, np.empty(0)
    for _, ((begin, end), _) in fold(shape, box, (len(shape) - 1, 1)):
        for tile in range(begin // rows_per_tile, -(-end // rows_per_tile)):
            origin = tile * rows_per_tile
            if tile != number:  # many short runs of rows may lie in one tile
                # All of a tile is drawn, so that a row's bits do not depend on who asks.
                rows_here = min(rows_per_tile, prod(shape[:-1]) - origin)
                drawn = _generator(f"{name}/{tile}").standard_normal(
                    (rows_here, columns), dtype=np.float32
                )
                number = tile
            start, stop = max(begin, origin), min(end, origin + rows_per_tile)
            rows = drawn[start - origin : stop - origin, first_column:last_column]
            flat[done : done + stop - start] = torch.from_numpy(np.ascontiguousarray(rows))
            done += stop - start


def _generator(name: str) -> np.random.Generator:
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))
