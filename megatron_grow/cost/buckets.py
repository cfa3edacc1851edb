"""Parameters that data-parallel ranks reduce and gather at once, as megatron-core cuts them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import NamedTuple

from megatron_grow.config.pipeline import chunk_layers
from megatron_grow.cost.step import Placement
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.sharding import shape_on_rank
from megatron_grow.state.tensors import LogicalTensor

_LEAST, _LEAST_PER_REPLICA = 40_000_000, 1_000_000
"""Parameters in a bucket at the least."""


class Stored(NamedTuple):
    """A parameter of a rank: a tensor, or a layer's."""

    tensor: LogicalTensor
    layer: int | None
    """Of the model; None where the tensor has no layers."""
    numel: int
    """Entries that the rank has, padding included."""


def buckets(placed: Placement, rank: int, *, of_experts: bool = False) -> list[list[Stored]]:
    """Of a pipeline rank, in the order in which their gradients are complete.

    Only the first chunk of the first pipeline rank is cut, and only where its reduction is to
    overlap with the backward pass. A tied embedding has a bucket to itself where the pipeline's
    ends each have a copy. Not known: stages that align buckets with layers.

    Args:
        placed: the model.
        rank: of the pipeline.
        of_experts: the parameters that expert-parallel ranks share, or else all others: both have
            buckets of their own.
    """
    parallel, mesh = placed.parallel, placed.parallel.mesh
    sizes = [
        (tensor, prod(shape_on_rank(tensor.axes, mesh)))
        for tensor in logical_tensors(placed.model).values()
        if tensor.of_experts == of_experts
    ]
    peers = parallel.data_parallel_size(placed.world_size)
    least = parallel.bucket_size or max(_LEAST, _LEAST_PER_REPLICA * peers)
    pipeline = parallel.pipeline_model_parallel_size
    alone = pipeline > 1 and placed.shares_state
    chunks = chunk_layers(parallel, placed.model.num_layers, "parallel")[rank]
    found: list[list[Stored]] = []
    for number, layers in reversed([*enumerate(chunks)]):
        begins = rank == number == 0
        ends = rank == pipeline - 1 and number == len(chunks) - 1
        stored = _stored(sizes, layers, begins, ends)
        cut = begins and parallel.overlap_grad_reduce
        found += _filled(reversed([*stored]), least if cut else None, alone)
    return found


def _stored(
    sizes: Sequence[tuple[LogicalTensor, int]], layers: Iterable[int], begins: bool, ends: bool
) -> Iterator[Stored]:
    """In the order of the model's modules; whether it begins or ends with these ``layers``."""
    inside = [each for each in sizes if each[0].stacked]
    outside = [each for each in sizes if not each[0].stacked]
    if begins:
        yield from (Stored(t, None, numel) for t, numel in outside if t.on_first_stage)
    for layer in layers:
        yield from (Stored(t, layer, numel) for t, numel in inside if t.is_in(layer))
    if ends:
        yield from (Stored(t, None, numel) for t, numel in outside if not t.on_first_stage)
    if ends and not begins:
        yield from (Stored(t, None, numel) for t, numel in outside if t.tied_as is not None)


def _filled(stored: Iterable[Stored], least: int | None, alone: bool) -> Iterator[list[Stored]]:
    """Buckets of ``least`` parameters, or one (None); whether a tied embedding is ``alone``."""
    bucket: list[Stored] = []
    filled = 0
    for each in stored:
        apart = alone and each.tensor.tied_as is not None
        if apart and bucket:
            yield bucket
            bucket, filled = [], 0
        bucket.append(each)
        filled += each.numel
        if apart or (least is not None and filled >= least):
            yield bucket
            bucket, filled = [], 0
    if bucket:
        yield bucket
