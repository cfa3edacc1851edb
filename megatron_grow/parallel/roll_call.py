"""What ranks tell each other through the job's store, whatever else they wait for."""

from __future__ import annotations

import socket
import time
from typing import Any

_FAILED = "failed"
_LISTENS = 4.0
"""Seconds in which a rank that is alive gives a sign of it, on a busy machine too."""


class RollCall:
    """One rank's requests to the store. Each may wait for ever, where the store is cut off."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        """Tell the store where this rank is.

        Args:
            store: a connection to the job's store of its own, since others wait in theirs.
            rank: of this process.
            world_size: how many there are.
        """
        self._store, self.rank, self.world_size = store, rank, world_size
        store.set(f"host_{rank}", socket.gethostname())

    def answer(self) -> None:
        """Give a sign of life."""
        self._store.add(f"alive_{self.rank}", 1)

    def signs(self, rank: int) -> int:
        """How many that ``rank`` has given; none before it has joined the job."""
        return self._store.add(f"alive_{rank}", 0)

    def announce(self) -> bool:
        """Let the others know that this rank fails; whether it is the first."""
        return self._store.add(_FAILED, 1) == 1

    def failed(self) -> bool:
        """Whether a rank has announced its failure."""
        return self._store.check([_FAILED])

    def host(self, rank: int) -> str:
        """Where ``rank`` is, once it has joined the job."""
        if not self._store.check([f"host_{rank}"]):
            return "it has not joined"
        return self._store.get(f"host_{rank}").decode()

    def silent(self) -> dict[int, str]:
        """The hosts of all ranks that give no sign of life now; takes some seconds if there are
        any, so one rank of a job may ask."""
        before = {rank: self.signs(rank) for rank in range(self.world_size) if rank != self.rank}
        deadline = time.monotonic() + _LISTENS
        while before and time.monotonic() < deadline:
            time.sleep(0.5)
            before = {rank: n for rank, n in before.items() if self.signs(rank) == n}
        return {rank: self.host(rank) for rank in before}
