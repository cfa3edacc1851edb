"""Reading ahead in a thread, into the memory of a GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import TypeVar

import torch

Item = TypeVar("Item")
Batch = dict[str, torch.Tensor]


def on_gpu(
    batches: Generator[Batch, None, None], gpu: torch.device, count: int
) -> Generator[Batch, None, None]:
    """The same micro-batches on ``gpu``, which they come to while earlier ones are worked on.

    Args:
        batches: in pinned memory; closed with what this returns.
        gpu: of this process.
        count: how many are read ahead.
    """
    # Memory is pinned for a thread's device, which at first is the first of the host.
    begin = partial(torch.cuda.set_device, gpu)
    ahead = read_ahead(_copied(batches, torch.cuda.Stream(gpu)), count, begin)
    with closing(batches), closing(ahead):
        for batch, copied in ahead:
            stream = torch.cuda.current_stream()
            stream.wait_event(copied)
            for values in batch.values():
                values.record_stream(stream)  # their memory is free when it has come so far
            yield batch


def _copied(
    batches: Iterator[Batch], stream: torch.cuda.Stream
) -> Generator[tuple[Batch, torch.cuda.Event], None, None]:
    """Copies that are made by a stream, and when they are done."""
    for batch in batches:
        with torch.cuda.stream(stream):
            copies = {name: x.to(stream.device, non_blocking=True) for name, x in batch.items()}
            copied = stream.record_event()
        yield copies, copied


def read_ahead(
    items: Iterator[Item], count: int, begin: Callable[[], object] = lambda: None
) -> Generator[Item, None, None]:
    """The same items in the same order, each taken by a thread while an earlier one is worked on.

    What ``items`` raises comes in its place. Closing waits for what has been begun.

    Args:
        items: without end, used by one thread at a time; the first is taken by the caller's, so
            that processes which make them are its children.
        count: how many are taken ahead.
        begin: called in the thread before all.
    """
    first = next(items)
    with ThreadPoolExecutor(1, "read-ahead", begin) as reader:
        coming = deque(reader.submit(next, items) for _ in range(count))
        yield first
        while True:
            item = coming.popleft().result()
            coming.append(reader.submit(next, items))
            yield item
