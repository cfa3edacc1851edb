"""Ctrl-C and SIGTERM, kept from where they would do harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started within never take notice of SIGINT and SIGTERM, from the first moment.

    They are sent to the whole process group, and the parent ends its children itself.
    """
    resource_tracker.ensure_running()  # otherwise started within, which lifts the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Answer SIGINT and SIGTERM only afterwards.

    Blocking them would not do: any other thread would take them, and the main thread answer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are answered elsewhere
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for first in arrived[:1]:
            signal.raise_signal(first)
