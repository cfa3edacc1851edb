"""Time in communication: what counts on a thread, and on the stream of a GPU that is made up."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from megatron_grow.parallel import communication
from megatron_grow.parallel.communication import CommunicationWaits
from tests.distributed import run_ranks


class Stream:
    """Works through what it is given, in milliseconds; the host may be far ahead."""

    def __init__(self) -> None:
        self.asked = 0.0
        """Until when it has work."""
        self.reached = 0.0

    def work(self, milliseconds: float) -> None:
        self.asked += milliseconds


class Event:
    """What is asked of one, without the ways to wait for it."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: Stream) -> None:
        self._stream, self._time = stream, stream.asked

    def query(self) -> bool:
        return self._time <= self._stream.reached

    def elapsed_time(self, end: Event) -> float:
        assert self.query() and end.query(), "torch would raise"
        return end._time - self._time


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """That of one of two GPUs, of which the other does the same, while the host's clock stands."""
    stream, clock = Stream(), SimpleNamespace(perf_counter=lambda: stream.asked / 1000)
    monkeypatch.setattr(communication, "time", clock)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(communication, "sum_over_ranks", lambda share: 2 * share)
    return stream


def test_a_stream_is_asked_only_for_what_it_has_done(stream: Stream) -> None:
    waits = CommunicationWaits(torch.device("cuda"))

    def step(number: int) -> None:
        waits.begin(number, 4)
        for each in (3.0, 1.0):
            stream.work(6.0)
            if communication._measuring is waits:
                waits.call(stream.work, each)
        waits.end()

    for number in (1, 2, 3):  # of which the second is measured: 16 ms
        step(number)
    stream.reached = 10.0 + 8.0  # behind 12 ms of the first step
    assert waits.share() == 0.0
    step(5)
    stream.reached = stream.asked
    assert waits.share() is None  # of the fifth nothing is measured
    step(6)
    stream.reached = stream.asked
    assert waits.share() == pytest.approx(2 * (3 + 1) / 16)


def two_threads() -> float | None:
    """This rank's share, of a step of half a second in which a thread waits for as long."""
    waits = CommunicationWaits(torch.device("cpu"))
    group = dist.new_group()
    saving = threading.Thread(target=dist.barrier, args=(group,))
    waits.begin(1, 1)
    if dist.get_rank() == 0:
        saving.start()
    time.sleep(0.5)
    waits.end()
    if dist.get_rank() == 1:
        saving.start()
    saving.join()
    waits.begin(2, 1)
    if dist.get_rank() == 1:
        time.sleep(0.5)
    dist.barrier()
    waits.end()
    return waits.share()


def test_what_another_thread_waits_for_does_not_count() -> None:
    """Two steps of half a second; in the second, one of two ranks waits for the other: a quarter.

    It would be a half with the thread's; a busy machine makes steps longer, and a wait.
    """
    first, second = run_ranks(2, two_threads)
    assert first == second and 0.15 < first < 0.4
