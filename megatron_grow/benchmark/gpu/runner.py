"""Measure one thing after the other within a budget of time; nothing that fails ends the rest."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
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


class _Server:
    """Calls functions in a process of its own."""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Its result."""
        return function(*args)


class Workers:
    """The processes of one part: made when they are asked for, ended with it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._gangs: dict[str, Gang] = {}

    def call(self, function: Callable[..., Any], *args: Any, process: str = "") -> Any:
        """Call ``function``, importable by name, in the process that has this name."""
        if process not in self._gangs:
            self._gangs[process] = Gang(_Server, threads=len(os.sched_getaffinity(0)))
        return self._gangs[process].call("call", function, *args, patience=self.patience())[0]

    def patience(self) -> float:
        """Seconds that one call may take."""
        return max(self.clock.left(), 1.0)

    def close(self) -> None:
        """End all processes, whatever they are at."""
        for gang in self._gangs.values():
            gang.close()
        self._gangs.clear()


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

    Each part has processes of its own. What fails gets new ones for what follows, and its
    traceback is its row.

    Args:
        tasks: those of a part stand together.
        clock: what they may take in all.
        done: called with the row of each task as soon as it is known.
        say: tells the user what goes on.
    """
    workers, part = Workers(clock), None
    try:
        for task in tasks:
            if task.part != part:
                workers.close()
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
                workers.close()
            row["took"] = time.monotonic() - began
            say(f"{task.part}: {task.name}: {'FAILED, ' * ('failed' in row)}{row['took']:.1f} s")
            done(task, row)
    finally:
        workers.close()
