"""Asynchronous saves: the files of the others, bit for bit, of the state as it was."""

from __future__ import annotations

import secrets
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_grow.checkpoint.layout import step_dir
from megatron_grow.checkpoint.record import GrowthEvent
from megatron_grow.checkpoint.root import latest, saved_steps
from megatron_grow.checkpoint.save import save
from megatron_grow.train import saves
from megatron_grow.train.saves import Saves
from tests.checkpoint.still import TENSORS, read, state
from tests.distributed import run_ranks

GROWTH = GrowthEvent(12, 1, "", "", "", None, 0, {})


def both_ways(root: Path, with_optimizer: bool) -> None:
    """The same state saved at once, and behind a training that changes it meanwhile."""
    uuid.uuid4 = lambda: "drawn"  # type: ignore[assignment, return-value]  # by torch for each save
    secrets.token_hex = lambda count=None: "drawn"
    may_write = threading.Event()

    def save_late(*args: Any, **options: Any) -> Path:
        assert may_write.wait(60)
        return save(*args, **options)

    options = {"with_optimizer": with_optimizer}
    with Saves(lambda *complete: None, asynchronous=False) as at_once:
        at_once.begin(root, *state(10, 1), TENSORS, **options)
    if dist.get_rank() == 0:
        step_dir(root, 10).rename(root / "at once")
    dist.barrier()
    saves.save = save_late  # this process ends after the test
    record, pieces = state(10, 1)
    with Saves(lambda *complete: None, asynchronous=True) as behind:
        behind.begin(root, record, pieces, TENSORS, **options)
        for piece in pieces:
            piece.data.zero_()
        record.growths.append(GROWTH)
        assert not behind.done
        may_write.set()
        behind.finish()
        assert behind.last == (10, step_dir(root, 10))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(("world_size", "with_optimizer"), [(1, False), (4, True)])
def test_the_files_are_those_of_a_save_that_training_waits_for(
    world_size: int, with_optimizer: bool, tmp_path: Path
) -> None:
    run_ranks(world_size, both_ways, tmp_path, with_optimizer)
    files = contents(step_dir(tmp_path, 10))
    assert files == contents(tmp_path / "at once")
    assert {f"__{rank}_0.distcp" for rank in range(world_size)} <= files.keys()
    if with_optimizer:
        assert read(step_dir(tmp_path, 10)) == 1


def one_after_another(root: Path) -> list[tuple[int, list[int]]]:
    told: list[tuple[int, list[int]]] = []
    with Saves(
        lambda step, path: told.append((step, saved_steps(root))), asynchronous=True
    ) as behind:
        for step in (10, 20, 30):
            behind.begin(root, *state(step, step), TENSORS, keep_last=2)
    assert behind.last == (30, latest(root))
    return told


def test_one_is_under_way_at_a_time(tmp_path: Path) -> None:
    """Each is complete, and told, before the next begins; older ones go only then."""
    [told, _] = run_ranks(2, one_after_another, tmp_path)
    assert told == [(10, [10]), (20, [10, 20]), (30, [20, 30])]
    assert [read(step_dir(tmp_path, step)) for step in (20, 30)] == [20, 30]
