"""Real gloo ranks inside pytest, forked from a warm process.

Importing torch and megatron-core takes seconds; a fork server that has imported them once hands out
ranks in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm"])


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 900
) -> list[Any]:
    """Run ``function(*args)`` on ``world_size`` gloo ranks; its picklable results, by rank.

    ``function`` must be importable (defined at the top of a test module). Any rank's failure fails
    the call with that rank's traceback; every process is reaped.
    """
    with tempfile.TemporaryDirectory() as rendezvous:
        queue = _CONTEXT.Queue()
        ranks = [
            _CONTEXT.Process(
                target=_rank,
                args=(rank, world_size, rendezvous, queue, function, args),
                daemon=False,
            )
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            return _collect(ranks, queue, timeout)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                process.join()


def _collect(ranks: list, queue: Any, timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(results) < len(ranks):
        try:
            rank, ok, value = queue.get(timeout=0.2)
        except Exception:
            dead = [
                i for i, p in enumerate(ranks) if p.exitcode not in (None, 0) and i not in results
            ]
            if dead:
                raise AssertionError(
                    f"ranks {dead} died with {[ranks[i].exitcode for i in dead]}"
                ) from None
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"ranks {sorted(set(range(len(ranks))) - set(results))} hang"
                ) from None
            continue
        if not ok:
            raise AssertionError(f"rank {rank} failed:\n{value}")
        results[rank] = value
    return [results[rank] for rank in range(len(ranks))]


def _rank(
    rank: int, world_size: int, rendezvous: str, queue: Any, function: Callable, args: tuple
) -> None:
    import torch
    import torch.distributed as dist

    from megatron_grow.parallel import cpu, process_groups

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    cpu.install()
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}/store", rank=rank, world_size=world_size
        )
        result = function(*args)
        process_groups.stop()
        queue.put((rank, True, result))
    except BaseException:
        queue.put((rank, False, traceback.format_exc()))
