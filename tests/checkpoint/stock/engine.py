"""megatron-core's own saving, without the processes that it starts to write files."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync


@contextmanager
def writing_in_process() -> Iterator[None]:
    """Within this block the rank that saves writes its files itself, one after the other."""

    def write(transforms: list, use_msc: bool, rank: int, buckets: list, results: Any) -> None:
        found = {}
        for number, bucket in enumerate(buckets):
            done, todo = queue.Queue(), queue.Queue()
            todo.put(number)
            FileSystemWriterAsync.write_preloaded_data(
                transforms, number, bucket, done, todo, use_fsync=False
            )
            found[number] = done.get(timeout=10)[1]
        results.put(found)

    with (
        mock.patch.object(
            FileSystemWriterAsync, "write_preloaded_data_multiproc", staticmethod(write)
        ),
        mock.patch.object(filesystem_async, "_get_write_results_queue", queue.Queue),
        mock.patch.object(filesystem_async, "_results_queue", queue.Queue()),
    ):
        yield
