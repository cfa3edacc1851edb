"""How long steps wait for other ranks.

Whoever asks torch for a collective or a message, megatron-core or this package, calls a method of a
process group, and waits in ``Work.wait`` where that has come back before it is done. Both note when
they begin and end while steps are measured.

On a CPU that is the time in which the thread of the training waits. On a GPU the host does not
wait: an event on the stream that computes is recorded before and after, and the time between
them is what the stream has spent in communication, or waiting for it. What runs beside computation
takes none of it.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist

from megatron_grow.parallel.agreement import sum_over_ranks

_COLLECTIVES = (
    "_allgather_base",
    "_reduce_scatter_base",
    "all_gather_single",
    "all_gather_single_coalesced",
    "all_to_all_single",
    "allgather",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "allreduce",
    "allreduce_coalesced",
    "alltoall",
    "alltoall_base",
    "barrier",
    "broadcast",
    "gather",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced",
    "scatter",
)
"""Of a process group, in versions of torch up to 2.13. Messages to one rank always leave a wait."""


class _Clock(Protocol):
    """Moments of what computes."""

    every_step: bool
    """Whether it is cheap enough to be read throughout."""

    def mark(self) -> Any:
        """This moment, once it is reached."""

    def seconds(self, begin: Any, end: Any) -> float | None:
        """From one to another; None where that has not been reached."""


class _HostClock:
    """Of a thread that computes on a CPU."""

    every_step = True

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, begin: float, end: float) -> float:
        return end - begin


class _StreamClock:
    """Of a GPU's stream; nothing waits for it."""

    every_step = False  # two events take some microseconds, and a step may have 10,000 messages

    def __init__(self) -> None:
        self._stream = torch.cuda.current_stream()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float | None:
        return begin.elapsed_time(end) / 1000 if end.query() else None


class CommunicationWaits:
    """The share of some steps in which ranks have waited for each other."""

    def __init__(self, device: torch.device) -> None:
        """Measure what this process, and its calling thread, computes on ``device``."""
        _look_at_collectives()
        self._clock: _Clock = _StreamClock() if device.type == "cuda" else _HostClock()
        self._thread = threading.get_ident()
        self._spans: list[tuple[Any, Any]] = []
        self._began: float | None = None
        self._measured = 0.0

    def begin(self, step: int, interval: int) -> None:
        """Measure a step from now on, if it is one of those that are.

        Args:
            step: its number.
            interval: of steps between questions for :meth:`share`. On a GPU the middle one is
                measured: what it has asked of the stream is done by then, and no rank is still
                behind because it has written a row.
        """
        global _measuring
        if self._clock.every_step or step % interval == interval // 2:
            self._began = time.perf_counter()
            _measuring = self if dist.get_world_size() > 1 else None  # a single rank waits for none

    def end(self) -> None:
        """The step has ended."""
        global _measuring
        if self._began is not None:
            self._measured += time.perf_counter() - self._began
        _measuring = self._began = None

    def share(self) -> float | None:
        """Of all ranks' time in the steps that were measured since the last question.

        None where none was. Every rank takes part. Waits that a GPU's stream has not come to yet
        are left for the next question.
        """
        if not self._measured:
            return None
        spans, self._spans, waited = self._spans, [], 0.0
        for span in spans:
            seconds = self._clock.seconds(*span)
            if seconds is None:
                self._spans.append(span)
            else:
                waited += seconds
        share, self._measured = waited / self._measured, 0.0
        return sum_over_ranks(share) / dist.get_world_size()

    def call(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """``function(*args, **kwargs)``, in which training may wait."""
        if not self._trains():
            return function(*args, **kwargs)
        begin = self._clock.mark()
        try:
            return function(*args, **kwargs)
        finally:
            self._spans.append((begin, self._clock.mark()))

    def _trains(self) -> bool:
        """Whether this thread is the training's, or one in which autograd goes backward for it:
        saves have a thread that communicates too."""
        return threading.get_ident() == self._thread or torch._C._current_graph_task_id() != -1


_measuring: CommunicationWaits | None = None
"""Who measures the step that is being taken."""


@functools.cache
def _look_at_collectives() -> None:
    """Have collectives noticed in this process; where nobody measures, they cost 0.1 us more."""
    works = (dist.Work, *dist.Work.__subclasses__())
    waits = [(work, "wait") for work in works]
    for owner, name in [*((dist.ProcessGroup, name) for name in _COLLECTIVES), *waits]:
        if name in vars(owner):
            setattr(owner, name, _noticed(getattr(owner, name)))


def _noticed(method: Callable) -> Callable:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        waits = _measuring  # once: a thread of saves does not know when a step ends
        return method(*args, **kwargs) if waits is None else waits.call(method, *args, **kwargs)

    return call
