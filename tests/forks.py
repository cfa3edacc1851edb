"""Processes forked from a warm one.

Importing torch and megatron-core takes seconds; a fork server that has imported them once hands out
processes in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import pickle
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.warm"])


def apart(function: Callable[..., Any], *args: Any, timeout: float = 900) -> Any:
    """``function(*args)``, importable by name, in a process of its own; its picklable result."""
    [result] = run_all(function, [args], timeout)
    return result


def run_all(
    function: Callable[..., Any], args: Sequence[tuple[Any, ...]], timeout: float
) -> list[Any]:
    """``function`` with each of ``args``, all at once, each rank in a process of its own.

    Any rank's failure fails the call with that rank's traceback; every process is reaped.
    """
    ranks: list[tuple[ForkServerProcess, Connection]] = []
    try:
        for each in args:
            ours, theirs = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(target=_answer, args=(theirs, function, each), daemon=False)
            process.start()
            theirs.close()  # so that it ends with the rank
            ranks.append((process, ours))
        return _collect(ranks, time.monotonic() + timeout)
    finally:
        for process, ours in ranks:
            process.kill()
            process.join()
            ours.close()


def _collect(ranks: list[tuple[ForkServerProcess, Connection]], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    waiting = {ours: rank for rank, (_, ours) in enumerate(ranks)}
    while waiting:
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        assert ready, f"ranks {sorted(waiting.values())} hang"
        for ours in [each for each in waiting if each in ready]:
            rank = waiting.pop(ours)
            try:
                ok, answer = ours.recv()
            except EOFError:
                process, _ = ranks[rank]
                process.join()
                raise AssertionError(
                    f"rank {rank} left without an answer, exit code {process.exitcode}"
                ) from None
            assert ok, f"rank {rank} failed:\n{answer}"
            results[rank] = pickle.loads(answer)
    return [results[rank] for rank in range(len(ranks))]


def _answer(connection: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        # Pickled here: by the connection, tensors would be by a reference to memory that ends with
        # this process.
        connection.send((True, pickle.dumps(function(*args))))
    except BaseException:
        connection.send((False, traceback.format_exc()))
