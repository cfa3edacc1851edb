"""What this process is at, and how long it may be before ranks stop waiting for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple


class Limits(NamedTuple):
    """How long ranks wait for each other."""

    step: timedelta = timedelta(minutes=10)
    """For a training step, or a batch of an evaluation."""
    pause: timedelta = timedelta(minutes=30)
    """For what training pauses for: the start of a run, a growth, a save."""


@dataclass
class Wait:
    """Something that all ranks do together."""

    what: str
    pause: bool
    """Whether the limit is that of a pause."""
    seconds: int = 0
    """Since it began, or last went on; :class:`~megatron_grow.parallel.watch.Watch` counts."""


START = Wait("the start of the run", pause=True)
"""What a process is at that has not said otherwise. It may keep a process busy alone, with indices
of a corpus for instance, so that for minutes it gives no sign of life."""

_current = START


def current() -> Wait:
    """What this process is at."""
    return _current


@contextmanager
def during(what: str, *, pause: bool = False) -> Iterator[None]:
    """Be at ``what`` for the time of a block, which then goes back to what was before."""
    global _current
    before, _current = _current, Wait(what, pause)
    try:
        yield
    finally:
        _current = before
        goes_on()


def goes_on() -> None:
    """Begin to wait anew: the ranks have just been together."""
    _current.seconds = 0
