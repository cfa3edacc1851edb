"""Whether the gradients of layers agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_grow.live.layers import Layers
from megatron_grow.live.pieces import Shard
from megatron_grow.parallel.agreement import reduced

_CHUNK = 1 << 24
"""Values that are in fp64 at a time."""


@torch.no_grad()
def gradient_correlations(layers: Layers, pairs: Sequence[tuple[int, int]]) -> list[float]:
    """For each pair of layers, the cosine of the angle between their gradients.

    A layer's gradient is here one vector, of all its tensors. Every rank takes part, and gets the
    same; sums are in fp64.

    Args:
        layers: of the stage, whose gradients are reduced over data-parallel ranks.
        pairs: of layers that have the same tensors, in parts that correspond.

    Returns:
        From -1 to 1; 0 where a layer has no gradient.
    """
    group = parallel_state.get_pipeline_model_parallel_group()
    here = parallel_state.get_pipeline_model_parallel_rank()
    sums = torch.zeros(len(pairs), 3, dtype=torch.float64)
    for number, (first, second) in enumerate(pairs):
        to, source = layers.rank_of[first], layers.rank_of[second]
        if source == here != to:
            # In the order of the pairs on every rank, so none waits for one that waits for it.
            dist.send(_flat(layers[second]), group=group, group_dst=to)
        if to == here:
            gradients = [_gradient(shard) for shard in layers[first]]
            others: Iterable[torch.Tensor] = (
                [_gradient(shard) for shard in layers[second]]
                if source == here
                else _received(gradients, group, source)
            )
            for shard, one, other in zip(layers[first], gradients, others, strict=True):
                if shard.counts:
                    sums[number] += _products(one, other)
    return [_cosine(*of_pair) for of_pair in reduced(sums, "sum").tolist()]


def _gradient(shard: Shard) -> torch.Tensor:
    assert shard.main.grad is not None, "gradients are ready"
    return shard.main.grad.view(-1)


def _flat(shards: Sequence[Shard]) -> torch.Tensor:
    return torch.cat([_gradient(shard) for shard in shards])


def _received(
    like: list[torch.Tensor], group: dist.ProcessGroup, source: int
) -> Iterable[torch.Tensor]:
    """What the pipeline rank ``source`` sends, of the sizes of ``like``."""
    message = torch.cat(like)
    dist.recv(message, group=group, group_src=source)
    return message.split([each.numel() for each in like])


def _products(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """One by itself, the other by itself, one by the other."""
    sums = torch.zeros(3, dtype=torch.float64, device=one.device)
    for parts in zip(one.split(_CHUNK), other.split(_CHUNK), strict=True):
        a, b = (part.double() for part in parts)
        sums += torch.stack([a @ a, b @ b, a @ b])
    return sums.cpu()


def _cosine(one: float, other: float, both: float) -> float:
    return both / sqrt(one * other) if one and other else 0.0
