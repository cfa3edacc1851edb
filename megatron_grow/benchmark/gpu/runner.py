"""Measure one thing after the other within a budget of time; nothing that fails ends the rest."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from megatron_grow.benchmark.gang import Gang

Row = dict[str, Any]
"""What one task has measured, for JSON."""


@dataclass(frozen=True)
class Task:
    """One measurement."""

    part: str
    name: str
    seconds: float
    """What it takes; it is left out where less is left."""
    measure: Callable[[Workers], Row]
    second: bool = False
    """Whether it waits until all others are done."""


class Clock:
    """A budget of time, from now on."""

    def __init__(self, seconds: float) -> None:
        self._began, self._seconds = time.monotonic(), seconds

    def used(self) -> float:
        """Seconds."""
        return time.monotonic() - self._began

    def left(self) -> float:
        """Seconds; below 0 when it is spent."""
        return self._seconds - self.used()


class Server:
    """Calls functions in a process of its own."""

    def __init__(self) -> None:
        import megatron_grow.benchmark.gpu.trainer  # noqa: F401  # takes seconds

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Its result."""
        return function(*args)


class Workers:
    """Processes that have the device: one at a time, and the next, which is made meanwhile."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._starts = ThreadPoolExecutor(1)
        self._next = self._starts.submit(_start)
        self._gang: Gang | None = None

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call ``function``, importable by name, in the process."""
        if self._gang is None:
            ready, self._next = self._next, self._starts.submit(_start)
            self._gang = ready.result(self.patience())
        return self._gang.call("call", function, *args, patience=self.patience())[0]

    def patience(self) -> float:
        """Seconds that one call may take."""
        return max(self._clock.left(), 1.0)

    def renew(self) -> None:
        """End the process, whatever it is at; the next call has a new one."""
        if self._gang is not None:
            self._gang.close()
            self._gang = None

    def close(self) -> None:
        """End all."""
        self.renew()
        with suppress(Exception):  # it could not be started, and is not needed
            self._next.result().close()
        self._starts.shutdown()


def _start() -> Gang:
    return Gang(Server, threads=len(os.sched_getaffinity(0)))


def in_worker(function: Callable[..., Row], *args: Any) -> Callable[[Workers], Row]:
    """A measurement that one call of ``function`` in a worker makes."""
    return partial(_call, function, args)


def _call(function: Callable[..., Row], args: tuple[Any, ...], workers: Workers) -> Row:
    return workers.call(function, *args)


def run(
    tasks: Sequence[Task],
    clock: Clock,
    done: Callable[[Task, Row], None],
    say: Callable[[str], None],
) -> None:
    """Run ``tasks`` in order, the important ones first.

    Each part has a process of its own. What fails gets a new one for what follows, and its
    traceback is its row.

    Args:
        tasks: where part changes, so does the process.
        clock: what they may take in all.
        done: called with the row of each task as soon as it is known.
        say: tells the user what goes on.
    """
    workers, part = Workers(clock), None
    try:
        for task in tasks:
            if task.part != part:
                workers.renew()
                part = task.part
            if clock.left() < task.seconds:
                say(f"{task.part}: {task.name}: left out, {clock.left():.0f} s are left")
                done(task, {"left_out": f"it takes about {task.seconds:.0f} s"})
                continue
            began = time.monotonic()
            try:
                row = task.measure(workers)
            except Exception:
                row = {"failed": traceback.format_exc()}
                workers.renew()
            row["took"] = time.monotonic() - began
            say(f"{task.part}: {task.name}: {'FAILED, ' * ('failed' in row)}{row['took']:.1f} s")
            done(task, row)
    finally:
        workers.close()
