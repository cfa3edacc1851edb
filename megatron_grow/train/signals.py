"""Stop requests: SIGTERM from a scheduler, SIGINT from a keyboard."""

from __future__ import annotations

import signal
from types import FrameType

from megatron_grow.parallel.agreement import any_rank


class StopRequest:
    """Notes a signal instead of dying of it, so that the run can save first."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.name: str | None = None
        """The signal that this rank received."""

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._note) for number in self._SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        return any_rank(self.name is not None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
