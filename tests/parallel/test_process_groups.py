"""Process groups come and go with the stages, and leave nothing behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.distributed import distributed_c10d

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.growth.filling import grown
from megatron_grow.growth.plan import resharding
from megatron_grow.parallel import process_groups
from tests.distributed import run_ranks
from tests.toy import TIED, begin, layout, micro_batches, run_config

GROWTHS, SETTLED = 50, 10


def _held() -> tuple[int, int, int, int]:
    """Process groups, threads, open files and sockets, and bytes that this process holds."""
    gc.collect()
    process = psutil.Process()
    return (
        len(distributed_c10d._world.pg_map),
        process.num_threads(),
        len(list(Path("/proc/self/fd").iterdir())),
        process.memory_info().rss,
    )


def _grow_and_grow(world_size: int) -> list[tuple[int, int, int, int]]:
    """What is held after each of many changes of layout, from DP2 to TP2 and back."""
    stages = [StageSection(until=10, parallel=layout()), StageSection(parallel=layout(tp=2))]
    config = run_config(*stages, model=TIED)
    there_and_back = config.resolve(world_size)
    live, plan, held = begin(config, world_size), resharding(config.model), []
    for number in range(1, GROWTHS + 1):
        live.forward_backward(1, micro_batches(config, 0))
        live, _ = grown(live, there_and_back[number % 2], config, plan)
        held.append(_held())
    return held


def test_fifty_growths_hold_what_one_holds() -> None:
    for held in run_ranks(2, _grow_and_grow, 2):
        groups, threads, descriptors, memory = zip(*held, strict=True)
        # Growth 1 has built the layout that growth 49 builds, growth 10 that of growth 50.
        for counted in (groups, threads, descriptors):
            assert counted[-1] <= counted[1] and counted[-2] <= counted[0], counted
        assert memory[-1] - memory[SETTLED] < 16 << 20, memory


@pytest.fixture
def alone() -> Iterator[None]:
    """A job of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    process_groups.tear_down()
    dist.destroy_process_group()


@pytest.mark.parametrize(("gpu", "backend"), [(False, "gloo"), (True, "nccl")])
def test_a_subgroup_has_one_backend(
    alone: None, monkeypatch: pytest.MonkeyPatch, gpu: bool, backend: str
) -> None:
    asked: list[str | None] = []
    made = parallel_state.torch.distributed.new_group

    def new_group(*args: Any, **kwargs: Any) -> dist.ProcessGroup:
        asked.append(kwargs["backend"])
        return made(*args, **{**kwargs, "backend": "gloo"})  # there is no NCCL here

    monkeypatch.setattr(dist, "new_group", new_group)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(process_groups.tensor_parallel, "model_parallel_cuda_manual_seed", _nothing)
    process_groups.set_up(ParallelConfig(), seed=1)
    assert asked and set(asked) == {backend}


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _collectives_by_group(options: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Of each of this rank's groups: its description, and how many collectives it has had when the
    stage is built, and after a step."""
    config = run_config(StageSection(parallel=layout(**options)), model=TIED)
    live = begin(config, dist.get_world_size())

    def counts() -> list[int]:
        return [group._get_sequence_number_for_group() for group in distributed_c10d._world.pg_map]

    before = counts()
    live.forward_backward(1, micro_batches(config, 0))
    live.update(live.gradient_norm())
    described = [group.group_desc for group in distributed_c10d._world.pg_map]
    return list(zip(described, before, counts(), strict=True))


@pytest.mark.parametrize("options", [{"tp": 2, "pp": 2}, {"tp": 2}])
def test_no_group_has_its_first_collective_in_a_step(options: dict[str, Any]) -> None:
    """NCCL connects a group there, which would not be counted as a growth's pause."""
    for groups in run_ranks(4, _collectives_by_group, options):
        used = {name for name, before, after in groups if after > before}
        assert used - {"default_pg"}
        assert not {name for name, before, after in groups if not before and after}
