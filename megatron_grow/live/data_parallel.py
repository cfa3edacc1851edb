"""A model with gradient buffers, and their reduction over data-parallel ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.utils import get_model_config

from megatron_grow.config.parallel import ParallelConfig


def wrap_data_parallel(
    chunks: Sequence[torch.nn.Module], parallel: ParallelConfig, distributed_optimizer: bool
) -> list[DistributedDataParallel]:
    """Give a model's chunks gradient buffers and their reduction over data-parallel ranks.

    ``distributed_optimizer`` says whether the optimizer shards its state: not all do.
    """
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather and distributed_optimizer,
        bucket_size=parallel.bucket_size,
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


def _one_or_all(hooks: list[Callable]) -> Callable | list[Callable]:
    return hooks if len(hooks) > 1 else hooks[0]
