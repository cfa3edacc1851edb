"""What a run's exit code says."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Of ``pretrain_progressive.py``."""

    DONE = 0
    """The run reached its end."""
    FAILED = 1
    """A failure of program or machine."""
    MISTAKE = 2
    """The user's: one line on standard error names the field or the file."""
    DIVERGED = 3
    """Loss, gradients or weights are not finite: the same command would end in the same way."""
    STOPPED = 75
    """Saved and stopped as asked (``EX_TEMPFAIL``): the same command goes on where it stopped."""
