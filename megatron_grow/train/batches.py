"""The micro-batches of a stage, from the run's stream of tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch
from megatron.core import parallel_state
from torch.utils.data import Dataset

from megatron_grow.config.run import RunConfig
from megatron_grow.data.ahead import on_gpu
from megatron_grow.data.loader import micro_batches
from megatron_grow.live.passes import Batches
from megatron_grow.live.stage import LiveStage
from megatron_grow.model.architectures import architecture_of
from megatron_grow.parallel import cpu


class Waiting(Iterator):
    """Micro-batches, and how long one has waited for them."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __next__(self) -> dict[str, torch.Tensor]:
        began = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - began


@contextmanager
def batches_of(
    live: LiveStage, run: RunConfig, dataset: Dataset, first_token: int
) -> Iterator[Batches | None]:
    """Micro-batches of a stage's length, from a place in the stream of tokens on.

    None where this rank needs no data.
    """
    if not live.needs_data():
        yield None
        return
    batch = live.stage.batch
    batches = micro_batches(
        architecture_of(run.model).cut(dataset, run.train.seq_length // batch.seq_length),
        first_sample=first_token // batch.seq_length,
        global_batch_size=batch.global_batch_size,
        micro_batch_size=batch.micro_batch_size,
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
        num_workers=run.data.num_workers,
    )
    device = cpu.device()
    if device.type == "cuda" and run.data.prefetch:
        batches = on_gpu(batches, device, run.data.prefetch)
    with closing(batches):
        yield batches
