"""Stop requests: SIGTERM from a scheduler, SIGINT from a keyboard."""

from __future__ import annotations

import signal
from types import FrameType

from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.parallel.agreement import any_rank


class StopRequest(TrainingMethod):
    """Notes a signal instead of dying of it, so that the run can save first."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.asked = False
        """Whether this rank has received a signal."""
        self.agreed = False
        """Whether all ranks know that one of them has; the same on all."""

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._note) for number in self._SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        if self.asked or self.agreed:
            return  # launcher and scheduler may both ask; the second must not kill the last steps
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def sees(self, ctx: Context) -> bool:
        """Whether this rank has received a signal."""
        return self.asked

    def before_update(self, ctx: Context, seen: bool) -> None:
        """Stop after the step in which any rank has."""
        self.agreed = seen
        if seen:
            ctx.stop()

    def poll(self) -> bool:
        """Ask all ranks whether any was asked to stop; all get the same answer."""
        (self.agreed,) = any_rank(self.asked)
        return self.agreed

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
