"""Megatron's fused projections as the separate matrices that they are.

``linear_qkv`` holds, for each query group, the rows of its queries, its key and its value;
``linear_fc1`` of a gated unit holds, on each tensor-parallel rank, its gate rows and then its up
rows. In both, the rows of a shard repeat a *pattern* of blocks, and the blocks at one place of the
pattern together are one matrix. That holds for a shard as for the whole.
"""

from __future__ import annotations

from math import prod

import torch

from megatron_grow.state.boxes import Box, shape_of
from megatron_grow.state.tensors import LogicalTensor

Pattern = tuple[int, ...]
"""Numbers of rows of the blocks, in order; repeated until the rows are used up."""


def row_pattern(tensor: LogicalTensor, shard: Box) -> Pattern | None:
    """The pattern of the rows of a ``shard`` of a tensor, of one layer; None: it is one matrix."""
    first = int(tensor.stacked)
    last, sizes = first + tensor.groups[first], shape_of(shard)
    for place in range(first, last):
        if fused := tensor.axes[place].fuses:
            inner = prod(sizes[place + 1 : last])
            return tuple(entries * inner for entries in fused)
    return None


def split_rows(tensor: torch.Tensor, pattern: Pattern) -> list[torch.Tensor]:
    """(n, rows, cols) to one (n, some of the rows, cols) for each block of the pattern."""
    blocks = tensor.unflatten(1, (-1, sum(pattern))).split(pattern, dim=2)
    return [block.flatten(1, 2) for block in blocks]


def merge_rows(matrices: list[torch.Tensor], pattern: Pattern) -> torch.Tensor:
    """Undo :func:`split_rows`."""
    blocks = [m.unflatten(1, (-1, rows)) for m, rows in zip(matrices, pattern, strict=True)]
    return torch.cat(blocks, dim=2).flatten(1, 2)
