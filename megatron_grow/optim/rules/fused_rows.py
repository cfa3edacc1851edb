"""Megatron's fused projections as the separate matrices that they are.

``linear_qkv`` holds, for each query group, the rows of its queries, its key and its value;
``linear_fc1`` of a gated unit holds, on each tensor-parallel rank, its gate rows and then its up
rows. In both, the rows of a shard repeat a *pattern* of blocks, and the blocks at one place of the
pattern together are one matrix. That holds for a shard as for the whole.
"""

from __future__ import annotations

import torch
from megatron.core.transformer import TransformerConfig

Pattern = tuple[int, ...]
"""Numbers of rows of the blocks, in order; repeated until the rows are used up."""


def row_pattern(name: str, param: torch.Tensor, config: TransformerConfig) -> Pattern:
    """The pattern of the rows of a weight; a single block for a tensor that is one matrix.

    Args:
        name: the parameter's name in the model.
        param: this rank's shard, (rows, cols).
        config: the model's.
    """
    if name.endswith("linear_qkv.weight"):
        queries = config.num_attention_heads // config.num_query_groups
        return (queries * config.kv_channels, config.kv_channels, config.kv_channels)
    if name.endswith("linear_fc1.weight") and config.gated_linear_unit:
        return (param.size(0) // 2, param.size(0) // 2)
    return (param.size(0),)


def split_rows(tensor: torch.Tensor, pattern: Pattern) -> list[torch.Tensor]:
    """(n, rows, cols) to one (n, some of the rows, cols) for each block of the pattern."""
    blocks = tensor.unflatten(1, (-1, sum(pattern))).split(pattern, dim=2)
    return [block.flatten(1, 2) for block in blocks]


def merge_rows(matrices: list[torch.Tensor], pattern: Pattern) -> torch.Tensor:
    """Undo :func:`split_rows`."""
    blocks = [m.unflatten(1, (-1, rows)) for m, rows in zip(matrices, pattern, strict=True)]
    return torch.cat(blocks, dim=2).flatten(1, 2)
