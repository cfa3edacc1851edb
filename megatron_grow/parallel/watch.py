"""Ranks that learn that another one has failed, whatever they are waiting for.

A rank that waits for a lost peer inside NCCL hears nothing, not even a signal, until a timeout of
half an hour. So each has a thread that asks the job's store.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

_KEY = "failed"
_ASKS_EVERY = 1.0
"""Seconds."""
_GRACE = 3.0
"""Seconds in which a rank that has heard of a failure may end by itself."""


class Watch:
    """Ends this process some seconds after another rank has announced its failure."""

    def __init__(self, store: Any, holds_store: bool) -> None:
        """Begin to watch.

        Args:
            store: a connection to the job's store of its own, since others wait in theirs.
            holds_store: whether the store ends with this process.
        """
        self._store, self._holds_store = store, holds_store
        self._heard = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def announce(self) -> bool:
        """Let the other ranks know that this one fails; whether it is the first."""
        self._ended.set()
        if self._heard:
            return False
        try:
            return self._store.add(_KEY, 1) == 1
        except Exception:  # the store went with the rank that held it
            return True

    def let_others_hear(self) -> None:
        """Keep the store until they have."""
        if self._holds_store:
            time.sleep(2 * _ASKS_EVERY)

    def failed(self) -> bool:
        """Whether a rank has announced its failure, or took the store with it."""
        try:
            self._heard = self._heard or self._store.check([_KEY])
        except Exception:
            self._heard = True
        return self._heard

    def end(self) -> None:
        """Watch no longer; all ranks do so before any of them leaves."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_ASKS_EVERY):
            if self.failed() and not self._ended.wait(_GRACE):
                os._exit(1)
