"""Micro-batches: every layout reads the same samples at the same step."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from megatron_grow.config.sections import DataSection
from megatron_grow.data.check import check_data
from megatron_grow.data.datasets import build_datasets
from megatron_grow.data.loader import micro_batches
from megatron_grow.data.samples import RunningText
from tests.data.corpora import write_corpus
from tests.forks import CONTEXT

GLOBAL_BATCH_SIZE = 12


class Numbers(Dataset):
    """Sample k is full of k."""

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        names = ("tokens", "labels", "position_ids", "loss_mask")
        return {name: torch.full((4,), number) for name in names} | {"dataset_id": torch.tensor(0)}


def read(
    micro_batch_size: int, ranks: int, *, first_step: int = 0, steps: int = 3, workers: int = 0
) -> list[list[list[int]]]:
    """Samples by [step][micro-batch of the step][rank and place], read by all ranks."""
    count = GLOBAL_BATCH_SIZE // (micro_batch_size * ranks)
    by_rank = [
        [
            batch["tokens"][:, 0].tolist()
            for batch in islice(
                micro_batches(
                    Numbers(),
                    first_sample=first_step * GLOBAL_BATCH_SIZE,
                    global_batch_size=GLOBAL_BATCH_SIZE,
                    micro_batch_size=micro_batch_size,
                    data_parallel_rank=rank,
                    data_parallel_size=ranks,
                    num_workers=workers,
                ),
                steps * count,
            )
        ]
        for rank in range(ranks)
    ]
    rows = [list(chain(*(rank[m] for rank in by_rank))) for m in range(steps * count)]
    return [rows[step * count : (step + 1) * count] for step in range(steps)]


@pytest.mark.parametrize(
    ("micro_batch_size", "ranks"), [(1, 1), (12, 1), (1, 12), (2, 3), (3, 2), (4, 1), (1, 4)]
)
def test_step_t_covers_the_same_samples_on_every_layout(micro_batch_size, ranks):
    steps = read(micro_batch_size, ranks)
    assert [list(chain(*step)) for step in steps] == [
        list(range(12)), list(range(12, 24)), list(range(24, 36))
    ]  # fmt: skip


def test_place_of_a_sample():
    """Step 1, micro-batch m, rank r: samples 12 + (m x 3 + r) x 2 and the one after."""
    assert read(2, 3)[1] == [[12, 13, 14, 15, 16, 17], [18, 19, 20, 21, 22, 23]]


@pytest.mark.parametrize("layout", [(1, 1), (2, 3)])
def test_resuming_gives_the_rest(layout):
    assert read(*layout, first_step=2, steps=2) == read(*layout, steps=4)[2:]


def test_loader_processes_change_nothing():
    assert read(2, 3, workers=2) == read(2, 3)


def test_micro_batches_of_a_blend(tmp_path: Path):
    a, b = (write_corpus(tmp_path / name, [100] * 10) for name in "ab")
    parts = check_data(
        DataSection(train_data_path=[0.5, a, 0.5, b]),
        seq_length=16,
        vocab_size=1000,
        evaluate=False,
    )
    train = build_datasets(
        *parts,
        RunningText(16, 1),
        train_samples=12,
        valid_samples=0,
        cache_dir=tmp_path / "cache",
    ).train
    batch = next(
        micro_batches(
            train,
            first_sample=4,
            global_batch_size=12,
            micro_batch_size=3,
            data_parallel_rank=1,
            data_parallel_size=2,
        )
    )
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == {
        "tokens": ((3, 16), torch.int64),
        "labels": ((3, 16), torch.int64),
        "position_ids": ((3, 16), torch.int64),
        "loss_mask": ((3, 16), torch.float32),
    }
    assert torch.equal(batch["tokens"], torch.stack([train[n]["tokens"] for n in (7, 8, 9)]))


def test_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="global_batch_size=12 is not a multiple of 5"):
        read(5, 1)


class Readers(Dataset):
    """Tells which process reads it."""

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        names = ("tokens", "labels", "position_ids", "loss_mask")
        return {name: torch.tensor([os.getpid()]) for name in names}


def reading() -> Generator:
    """Micro-batches of two loader processes."""
    return micro_batches(
        Readers(),
        first_sample=0,
        global_batch_size=1,
        micro_batch_size=1,
        data_parallel_rank=0,
        data_parallel_size=1,
        num_workers=2,
    )


def pids(batches: Generator) -> set[int]:
    return {int(next(batches)["tokens"]) for _ in range(12)}


def test_loader_processes_do_not_heed_signals_and_end_with_the_batches() -> None:
    """Those are for the ranks, which need their next samples until they have saved."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    batches = reading()
    workers = pids(batches)
    assert len(workers) == 2 and os.getpid() not in workers
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert pids(batches) == workers
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    batches.close()
    assert not any(map(alive, workers))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def read_for_ever(queue: Any) -> None:
    batches = reading()
    queue.put(pids(batches))
    signal.pause()


def test_loader_processes_end_with_their_rank() -> None:
    queue = CONTEXT.Queue()
    rank = CONTEXT.Process(target=read_for_ever, args=(queue,))
    rank.start()
    workers = queue.get(timeout=60)
    os.kill(rank.pid, signal.SIGKILL)
    rank.join()
    deadline = time.monotonic() + 30
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "they outlive it"
        time.sleep(0.2)
