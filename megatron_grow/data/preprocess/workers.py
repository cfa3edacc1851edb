"""A function applied by several processes, in order."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TypeVar

from megatron_grow.data.signals import deaf_children, undisturbed
from megatron_grow.inputs.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    load: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Apply the function that ``load`` returns to each item; results come in the items' order.

    A few items for each worker are in memory at a time. Each worker has a pipe of its own, since a
    killed one would take the lock of a shared one with it.

    Args:
        load: Called once in each worker, where it and what it returns are needed.
        items: What to apply it to.
        workers: Processes.

    Raises:
        UserError: a worker was killed.
    """
    # Spawned, since the tokenizers library has threads that would not survive a fork.
    context = multiprocessing.get_context("spawn")
    idle: SimpleQueue[Connection] = SimpleQueue()
    processes = []

    def apply(item: Item) -> Result:
        connection = idle.get()
        try:
            connection.send(item)
            return connection.recv()
        finally:
            idle.put(connection)

    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            with undisturbed(), deaf_children():
                for _ in range(workers):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_work, args=(load, theirs), daemon=True)
                    process.start()
                    theirs.close()
                    processes.append(process)
                    idle.put(ours)
            for item in items:
                pending.append(pool.submit(apply, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except (EOFError, ConnectionError) as error:
            raise UserError(
                f"one of the {workers} worker processes was killed, perhaps for want of memory, "
                "of which fewer --workers need less"
            ) from error
        finally:
            for future in pending:
                future.cancel()
            for process in processes:
                process.kill()
            for process in processes:
                process.join()


def _work(load: Callable[[], Callable[[Item], Result]], connection: Connection) -> None:
    # One process is one worker: the tokenizers library adds no threads of its own.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    function = load()
    with suppress(EOFError, OSError):  # the parent has gone
        while True:
            connection.send(function(connection.recv()))
