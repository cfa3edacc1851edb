"""A model with gradient buffers, and their reduction over data-parallel ranks."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.utils import get_model_config

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.live.placement import stored_parameters


def wrap_data_parallel(
    chunks: Sequence[MegatronModule],
    parallel: ParallelConfig,
    *,
    distributed_optimizer: bool,
    align_layers: bool,
) -> list[DistributedDataParallel]:
    """Give a model's chunks gradient buffers and their reduction over data-parallel ranks.

    Args:
        chunks: of this rank.
        parallel: the stage's.
        distributed_optimizer: whether the optimizer shards its state: not all do.
        align_layers: whether a data-parallel rank updates the same part of every layer. Buckets
            are then of layers, whatever ``parallel.bucket_size`` is.
    """
    bucket_size = parallel.bucket_size
    if align_layers and distributed_optimizer:
        bucket_size = sys.maxsize  # the first pipeline stage alone would go by it
        for chunk in chunks:
            _bound_layers(chunk)
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather and distributed_optimizer,
        bucket_size=bucket_size,
    )
    engine = get_model_config(chunks[0])
    wrapped = [
        # Reductions of later chunks overlap with the backward pass of earlier ones as they are.
        DistributedDataParallel(engine, config, chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    ]
    # The interleaved schedule takes a list of these, the others take one.
    if parallel.overlap_grad_reduce:
        engine.no_sync_func = _one_or_all([chunk.no_sync for chunk in wrapped])
    if config.overlap_param_gather:
        engine.param_sync_func = _one_or_all([chunk.start_param_sync for chunk in wrapped])
    return wrapped


def _bound_layers(chunk: MegatronModule) -> None:
    """Let buckets begin and end with a layer: of each, a rank updates an equal part.

    A parameter that megatron-core takes for a shared embedding has a bucket to itself, so those at
    both ends of a layer part the rest of it from other layers. Experts have a buffer of their own.
    """
    stored_as = {stored.data: stored for stored in stored_parameters(chunk)}
    in_order = defaultdict(list)
    for param in chunk.parameters():
        stored = stored_as[param]
        if stored.layer is not None:
            in_order[stored.layer, bool(stored.expert), param.dtype].append(param)
    for params in in_order.values():
        for end in (params[0], params[-1]):
            end.shared_embedding = True


def _one_or_all(hooks: list[Callable]) -> Callable | list[Callable]:
    return hooks if len(hooks) > 1 else hooks[0]
