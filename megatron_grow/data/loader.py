"""Micro-batches: which samples each data-parallel rank reads, and when."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch
from torch.utils.data import DataLoader, Dataset

FIELDS = ("tokens", "labels", "loss_mask", "position_ids")


def micro_batches(
    dataset: Dataset,
    *,
    first_sample: int,
    global_batch_size: int,
    micro_batch_size: int,
    data_parallel_rank: int,
    data_parallel_size: int,
    num_workers: int = 0,
) -> Iterator[dict[str, torch.Tensor]]:
    """The micro-batches of one data-parallel rank from sample ``first_sample`` on, without end.

    Step t after the first covers samples first_sample + [t, t + 1) x global_batch_size on every
    layout. Within it, micro-batch m of rank r holds the micro_batch_size samples from
    (m x data_parallel_size + r) x micro_batch_size on. There is no state to save: a resumed or
    regrown run passes the number of samples consumed so far.

    Args:
        dataset: Samples by global number.
        first_sample: Samples consumed before.
        global_batch_size: Sequences in one step over all ranks.
        micro_batch_size: Sequences in one micro-batch, B.
        data_parallel_rank: This rank's place among those that read different samples.
        data_parallel_size: Number of those.
        num_workers: Loader processes; 0 reads in this process.

    Returns:
        ``tokens``, ``labels``, ``position_ids`` int64 and ``loss_mask`` float32, each (B, S), on
        the CPU; pinned where there is a GPU.

    Raises:
        ValueError: micro-batches of all ranks do not divide the global batch.
    """
    stride = micro_batch_size * data_parallel_size  # samples that all ranks read at a time
    if global_batch_size % stride:
        raise ValueError(f"{global_batch_size=} is not a multiple of {stride} samples")
    starts = count(first_sample + data_parallel_rank * micro_batch_size, stride)
    loader = DataLoader(
        dataset,
        batch_sampler=(list(range(start, start + micro_batch_size)) for start in starts),
        collate_fn=_stack,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


def _stack(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in FIELDS}
