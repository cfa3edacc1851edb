"""Layers beside each other: whether their gradients agree, and whether they are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import sqrt

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_grow.live.layers import Layers
from megatron_grow.live.pieces import Shard
from megatron_grow.parallel.agreement import reduced

Pair = tuple[int, int]
"""Two layers, by number, of the same tensors in parts that correspond."""
Memory = Callable[[Shard], torch.Tensor]
"""What is meant of a shard."""
_CHUNK = 1 << 24
"""Values that are in fp64 at a time."""


@torch.no_grad()
def gradient_correlations(layers: Layers, pairs: Sequence[Pair]) -> list[float]:
    """For each pair of layers, the cosine of the angle between their gradients.

    A layer's gradient is here one vector, of all its tensors. Every rank takes part, and gets the
    same; sums are in fp64.

    Args:
        layers: of the stage, whose gradients are reduced over data-parallel ranks.
        pairs: of these.

    Returns:
        From -1 to 1; 0 where a layer has no gradient.
    """
    sums = torch.zeros(len(pairs), 3, dtype=torch.float64)
    for number, one, other in _beside(layers, pairs, lambda shard: shard.gradient):
        sums[number] += _products(one, other)
    return [_cosine(*of_pair) for of_pair in reduced(sums, "sum").tolist()]


@torch.no_grad()
def differing(layers: Layers, pairs: Sequence[Pair]) -> list[Pair]:
    """Those of ``pairs`` whose main parameters differ in any bit; every rank takes part."""
    differ = torch.zeros(len(pairs), dtype=torch.int32)
    for number, one, other in _beside(layers, pairs, lambda shard: shard.main):
        differ[number] |= not torch.equal(one, other)
    return [
        pair for pair, found in zip(pairs, reduced(differ, "max").tolist(), strict=True) if found
    ]


def _beside(
    layers: Layers, pairs: Sequence[Pair], memory: Memory
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """What two layers have in one place, each place on one rank, flat; with the pair's number."""
    group = parallel_state.get_pipeline_model_parallel_group()
    here = parallel_state.get_pipeline_model_parallel_rank()
    for number, (first, second) in enumerate(pairs):
        to, source = layers.rank_of[first], layers.rank_of[second]
        # In the order of the pairs on every rank, so none waits for one that waits for it. Of more
        # ranks than a layer has entries some hold none of it, of either layer.
        if here == source != to and (theirs := _flat(layers[second], memory)):
            dist.send(torch.cat(theirs), group=group, group_dst=to)
        if here == to and (mine := _flat(layers[first], memory)):
            others: Iterable[torch.Tensor]
            if source == here:
                others = _flat(layers[second], memory)
            else:
                message = torch.cat(mine)
                dist.recv(message, group=group, group_src=source)
                others = message.split([each.numel() for each in mine])
            for shard, one, other in zip(layers[first], mine, others, strict=True):
                if shard.counts:
                    yield number, one, other


def _flat(shards: Sequence[Shard], memory: Memory) -> list[torch.Tensor]:
    return [memory(shard).view(-1) for shard in shards]


def _products(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """One by itself, the other by itself, one by the other."""
    sums = torch.zeros(3, dtype=torch.float64, device=one.device)
    for parts in zip(one.split(_CHUNK), other.split(_CHUNK), strict=True):
        a, b = (part.double() for part in parts)
        sums += torch.stack([a @ a, b @ b, a @ b])
    return sums.cpu()


def _cosine(one: float, other: float, both: float) -> float:
    return both / sqrt(one * other) if one and other else 0.0
