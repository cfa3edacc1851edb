"""Ranks in processes of their own, which do one thing at a time on request.

What is compared runs in separate processes, so that nothing that one side does to its process (the
CPU seam, memory that is kept, process groups) helps or hinders the other; and in turns, so that a
busy or throttled machine slows both.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from megatron_grow.parallel.ports import free_port

_CONTEXT = multiprocessing.get_context("spawn")
_PATIENCE = 600
"""Seconds for one request, where nobody says otherwise."""


class Gang:
    """``world_size`` processes that form one job, each with an object made by ``factory``."""

    def __init__(
        self,
        factory: Callable[..., Any],
        *args: Any,
        world_size: int = 1,
        threads: int = 1,
    ) -> None:
        """Start the ranks and make ``factory(*args)`` on each; it must be importable by name."""
        self._ranks: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []
        try:
            with free_port() as port:
                for rank in range(world_size):
                    environment = {
                        "RANK": str(rank),
                        "LOCAL_RANK": str(rank),
                        "WORLD_SIZE": str(world_size),
                        "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(port),
                        "OMP_NUM_THREADS": str(threads),
                    }
                    self._start(environment, factory, args)
                self._collect()
        except BaseException:
            self.close()
            raise

    def _start(
        self, environment: dict[str, str], factory: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(
            target=_serve, args=(theirs, environment, factory, args), daemon=True
        )
        os.environ.update(environment)  # torch reads OMP_NUM_THREADS when it is imported
        process.start()
        theirs.close()
        self._ranks.append((process, ours))

    def call(self, method: str, *args: Any, patience: float = _PATIENCE) -> list[Any]:
        """Call a method of every rank's object; its results, by rank, in ``patience`` seconds."""
        for _, connection in self._ranks:
            connection.send((method, args))
        return self._collect(patience)

    def close(self) -> None:
        """End the processes, all at once: those that are left would tell of the others' end."""
        for process, _ in self._ranks:
            process.kill()
        for process, connection in self._ranks:
            process.join()
            connection.close()
        self._ranks.clear()

    def __enter__(self) -> Gang:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _collect(self, patience: float = _PATIENCE) -> list[Any]:
        waiting = {connection: rank for rank, (_, connection) in enumerate(self._ranks)}
        results: dict[int, Any] = {}
        while waiting:
            ready = wait(list(waiting), patience)
            if not ready:
                raise RuntimeError(f"no answer from the ranks in {patience:.0f} s")
            for connection in [known for known in waiting if known in ready]:
                rank = waiting.pop(connection)
                try:
                    ok, value = connection.recv()
                except EOFError:
                    ok, value = False, "it died"
                if not ok:
                    raise RuntimeError(f"rank {rank} failed: {value}")
                results[rank] = value
        return [results[rank] for rank in range(len(results))]


def _serve(
    connection: Connection,
    environment: dict[str, str],
    factory: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ.update(environment)
    try:
        worker = factory(*args)
        connection.send((True, None))
        while True:
            method, arguments = connection.recv()
            connection.send((True, getattr(worker, method)(*arguments)))
    except EOFError:
        pass  # the parent has closed its end
    except BaseException:
        connection.send((False, traceback.format_exc()))
