"""Micro-batches: which samples each data-parallel rank reads, and when."""

from __future__ import annotations

from collections.abc import Generator
from itertools import count

import torch
from torch.utils.data import DataLoader, Dataset

from megatron_grow.data.signals import deaf_children
from megatron_grow.inputs.errors import UserError


def micro_batches(
    dataset: Dataset,
    *,
    first_sample: int,
    global_batch_size: int,
    micro_batch_size: int,
    data_parallel_rank: int,
    data_parallel_size: int,
    num_workers: int = 0,
) -> Generator[dict[str, torch.Tensor], None, None]:
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
        The fields of the samples, each (B, ...), on the CPU; pinned where there is a GPU. Closing
        it ends the loader processes.

    Raises:
        ValueError: micro-batches of all ranks do not divide the global batch.
        UserError: by the iterator, as the dataset does.
    """
    stride = micro_batch_size * data_parallel_size  # samples that all ranks read at a time
    if global_batch_size % stride:
        raise ValueError(f"{global_batch_size=} is not a multiple of {stride} samples")
    starts = count(first_sample + data_parallel_rank * micro_batch_size, stride)
    loader = DataLoader(
        _Batches(dataset),
        batch_sampler=(list(range(start, start + micro_batch_size)) for start in starts),
        collate_fn=_stack,
        num_workers=num_workers,
        multiprocessing_context="fork" if num_workers else None,  # inherits the blocked signals
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or it would draw from the one that dropout draws from
    )
    return _read(loader)


def _read(loader: DataLoader) -> Generator[dict[str, torch.Tensor], None, None]:
    # The scheduler's SIGTERM goes to every process of the job. Loader processes end with the
    # iterator, or with their parent; before that it needs them to finish its step and save.
    with deaf_children():
        batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:
        del batches  # an error's traceback keeps this frame, and would keep the processes


class _Batches(Dataset):
    """Micro-batches of a dataset.

    A user's mistake is handed on as a value: raised in a loader process, it would arrive wrapped in
    that process's traceback.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitems__(self, numbers: list[int]) -> list[dict[str, torch.Tensor]] | UserError:
        try:
            return [self._dataset[number] for number in numbers]
        except UserError as error:
            return error


def _stack(
    samples: list[dict[str, torch.Tensor]] | UserError,
) -> dict[str, torch.Tensor] | UserError:
    if isinstance(samples, UserError):
        return samples
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
