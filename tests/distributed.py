"""Real gloo ranks inside pytest, forked from a warm process.

Importing torch and megatron-core takes seconds; a fork server that has imported them once hands out
ranks in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
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
        answers = _CONTEXT.Queue()
        ranks = [
            _CONTEXT.Process(
                target=_rank,
                args=(rank, world_size, f"{rendezvous}/store", answers, function, args),
                daemon=False,
            )
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            return _collect(ranks, answers, timeout)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                process.join()


def _collect(ranks: list, answers: Any, timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(results) < len(ranks):
        # A rank ends after its answer is in the queue.
        ended = {i: p.exitcode for i, p in enumerate(ranks) if p.exitcode is not None}
        try:
            rank, ok, answer = answers.get(timeout=0.2)
        except queue.Empty:
            silent = {i: code for i, code in ended.items() if i not in results}
            assert not silent, f"ranks ended without an answer, exit codes by rank: {silent}"
            missing = sorted(set(range(len(ranks))) - set(results))
            assert time.monotonic() < deadline, f"ranks {missing} hang"
            continue
        assert ok, f"rank {rank} failed:\n{answer}"
        results[rank] = pickle.loads(answer)
    return [results[rank] for rank in range(len(ranks))]


def _rank(
    rank: int, world_size: int, rendezvous: str, answers: Any, function: Callable, args: tuple
) -> None:
    import torch
    import torch.distributed as dist

    from megatron_grow.parallel import cpu, process_groups

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    cpu.install()
    try:
        store = dist.FileStore(rendezvous, world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        # A rank may be connected to others that are not yet connected to it, and would fail if it
        # left now.
        _meet(store, rank, world_size)
        result = function(*args)
        process_groups.stop()
        # Pickled here: by the queue, it would be where no error is seen, and tensors by a reference
        # to memory that ends with this process.
        answers.put((rank, True, pickle.dumps(result)))
    except BaseException:
        answers.put((rank, False, traceback.format_exc()))


def _meet(store: Any, rank: int, world_size: int) -> None:
    store.set(f"connected {rank}", "")
    store.wait([f"connected {other}" for other in range(world_size)])
