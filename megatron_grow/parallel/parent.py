"""Workers that end with the agent that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""Of ``prctl(2)``: the signal that the kernel sends this process when its parent is gone."""


def end_with_agent() -> None:
    """End this worker of torchrun at once if torchrun's agent is killed.

    Otherwise it would train on and write, beside the job that takes its place. Of a process that
    torchrun has not started, nothing changes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    agent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != agent:  # it was gone before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)
