"""Work that needs whole matrices, divided among the ranks that hold their shards."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist


def map_whole(
    function: Callable[[torch.Tensor], torch.Tensor],
    shards: torch.Tensor,
    partition_dim: int | None,
    tp_group: dist.ProcessGroup | None,
    dp_group: dist.ProcessGroup | None,
) -> torch.Tensor:
    """Apply ``function`` to whole matrices of which every rank holds a shard.

    Each matrix is put together on one rank of ``tp_group`` x ``dp_group``, treated there alone, and
    its slices are sent back: no rank repeats the work of another, and a rank never holds more whole
    matrices than its share.

    Args:
        function: (k, whole rows, whole cols) to the same shape, matrix by matrix, for any k >= 0.
        shards: (n, rows, cols), this rank's slices of n matrices of one shape.
        partition_dim: 0 if ``tp_group`` cuts the rows, 1 if the columns, None if it does not cut.
        tp_group: ranks that hold the slices of one matrix; None is a group of one.
        dp_group: ranks that hold copies of the same slices; None is a group of one.

    Returns:
        (n, rows, cols), this rank's slices of the results; bit-identical over ``dp_group``.
    """
    dp_size, dp_rank = _size_and_rank(dp_group)
    results = torch.empty_like(shards)
    sizes = _shares(shards.size(0), dp_size)
    shares, mine = results.split(sizes), shards.split(sizes)[dp_rank]
    if partition_dim is None or tp_group is None or tp_group.size() == 1:
        shares[dp_rank].copy_(function(mine))
    else:
        shares[dp_rank].copy_(_exchange(function, mine, partition_dim + 1, tp_group))
    if dp_size > 1:
        sent = [
            dist.broadcast(share, group=dp_group, group_src=owner, async_op=True)
            for owner, share in enumerate(shares)
            if share.size(0)
        ]
        for work in sent:
            work.wait()
    return results


def _exchange(
    function: Callable[[torch.Tensor], torch.Tensor],
    shards: torch.Tensor,
    dim: int,
    group: dist.ProcessGroup,
) -> torch.Tensor:
    size, rank = _size_and_rank(group)
    theirs = _shares(shards.size(0), size)
    mine = [theirs[rank]] * size
    slices = shards.new_empty(sum(mine), *shards.shape[1:])
    dist.all_to_all_single(slices, shards.contiguous(), mine, theirs, group=group)
    results = function(torch.cat(slices.chunk(size), dim))
    slices = torch.cat(results.chunk(size, dim))
    shards = torch.empty_like(shards)
    dist.all_to_all_single(shards, slices, theirs, mine, group=group)
    return shards


def _shares(count: int, ranks: int) -> list[int]:
    """How many of ``count`` things each rank takes."""
    return [count // ranks + (rank < count % ranks) for rank in range(ranks)]


def _size_and_rank(group: dist.ProcessGroup | None) -> tuple[int, int]:
    return (group.size(), group.rank()) if group is not None else (1, 0)
