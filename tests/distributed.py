"""Real gloo ranks inside pytest, forked from a warm process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

from tests import forks


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 900
) -> list[Any]:
    """Run ``function(*args)`` on ``world_size`` gloo ranks; its picklable results, by rank.

    ``function`` must be importable (defined at the top of a test module). Any rank's failure fails
    the call with that rank's traceback; every process is reaped.
    """
    with tempfile.TemporaryDirectory() as rendezvous:
        place = world_size, f"{rendezvous}/store", function, args
        return forks.run_all(_rank, [(rank, *place) for rank in range(world_size)], timeout)


def _rank(
    rank: int, world_size: int, rendezvous: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    import torch
    import torch.distributed as dist

    from megatron_grow.parallel import cpu, process_groups

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    cpu.install()
    store = dist.FileStore(rendezvous, world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    # A rank may be connected to others that are not yet connected to it, and would fail if it left
    # now.
    store.set(f"connected {rank}", "")
    store.wait([f"connected {other}" for other in range(world_size)])
    result = function(*args)
    process_groups.stop()
    return result
