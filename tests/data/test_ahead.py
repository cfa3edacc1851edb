"""What is read ahead is what is read in turn."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from megatron_grow.data.ahead import on_gpu, read_ahead


def test_begun_before_it_is_asked_for() -> None:
    """In order; errors in their place; the first by the caller's thread."""
    begun, threads = SimpleQueue[int](), []

    def source() -> Generator[int, None, None]:
        for number in range(4):
            begun.put(number)
            threads.append(threading.current_thread())
            yield number
        raise OSError("the fifth")

    items = read_ahead(source(), count=2)
    assert next(items) == 0
    assert [begun.get(timeout=60) for _ in range(3)] == [0, 1, 2]  # two beyond what was asked for
    assert [next(items) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(OSError, match="the fifth"):
        next(items)
    assert threads[0] is threading.current_thread() and len({*threads[1:]} - {threads[0]}) == 1
    assert not threads[1].is_alive()


class Stream:
    """Stands in for CUDA's: what it copies is done when an event of it has been waited for."""

    device = torch.device("cpu")

    def __init__(self, *_: Any) -> None:
        self.waited: list[Stream] = []

    def record_event(self) -> Stream:
        return self

    def wait_event(self, event: Stream) -> None:
        self.waited.append(event)


def test_copies_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each before it is handed out, by the stream that computes, which their memory is kept for."""
    computing, devices, kept = Stream(), list[Any](), list[tuple[torch.Tensor, Stream]]()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: computing)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *use: kept.append(use))
    closed = []

    def source() -> Generator[dict[str, torch.Tensor], None, None]:
        try:
            for number in range(100):
                yield {"tokens": torch.full((2, 3), number), "mask": torch.ones(3)}
        finally:
            closed.append(True)

    batches = on_gpu(source(), torch.device("cuda", 1), count=3)
    for number in range(10):
        batch = next(batches)
        assert batch["tokens"].tolist() == [[number] * 3] * 2
        assert len(computing.waited) == number + 1
        last = [(id(values), id(stream)) for values, stream in kept[-2:]]
        assert last == [(id(batch[name]), id(computing)) for name in ("tokens", "mask")]
    assert devices == [torch.device("cuda", 1)]
    batches.close()
    assert closed == [True]
