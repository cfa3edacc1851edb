"""A rank that cannot go on says why, once and with its name, and takes the job with it.

Nothing here waits for other ranks, which may be waiting for this one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from typing import NoReturn

from megatron_grow.config.exit_codes import ExitCode
from megatron_grow.inputs.errors import AgreedError, one_line
from megatron_grow.parallel import last_words
from megatron_grow.parallel.watch import Watch

_PATIENCE = 3.0
"""Seconds in which torchrun's agent, or another rank, makes known that somebody else has failed."""
_LOST = (
    "onnection closed by peer",
    "onnection reset by peer",
    "onnection timed out",
    "Broken pipe",
    "No route to host",
    "Network is unreachable",
    "Timed out waiting",
    "NCCL",
)
"""In what gloo and NCCL say when another rank is gone."""


def report(error: Exception, watch: Watch | None) -> ExitCode:
    """Say what ended this rank: on the console, to torchrun's agent and to the other ranks.

    What a user can mend is one line; everything else is a traceback, and a line with the rank's
    name. Of several ranks that fail, one speaks.

    Args:
        error: what ended this rank.
        watch: that of the job; None if this process has not joined it yet.

    Returns:
        How the process ends.
    """
    rank, line = int(os.environ.get("RANK", "0")), one_line(error)
    lost = line is None and lost_a_rank(error)
    agreed = isinstance(error, AgreedError)
    if agreed and rank != 0:
        _wait_for_agent()  # rank 0 has not yet spoken
    elif agreed or _is_first(rank, lost, watch):
        if line is None and not lost:
            traceback.print_exception(error)
        name = "" if agreed or (rank == 0 and watch is None) else last_words.of_this_rank()
        what = f"{type(error).__name__}: {str(error).strip().partition(os.linesep)[0]}"
        if lost:
            what = f"lost another rank: {what}; {last_words.way_on()}"
        last_words.say(f"error{name}: {line or what}")
    if watch is not None and not agreed:
        watch.let_others_hear()
    return ExitCode.FAILED if line is None else ExitCode.MISTAKE


def lost_a_rank(error: Exception) -> bool:
    """Whether ``error`` says that another rank of the job is gone.

    The same words in an error of the operating system are of a loader process that was killed.
    """
    return not isinstance(error, OSError) and any(words in str(error) for words in _LOST)


def leave(code: int) -> NoReturn:
    """End this process with ``code``; a failed one at once, whatever threads and peers do."""
    if code == 0:
        sys.exit(0)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _is_first(rank: int, lost: bool, watch: Watch | None) -> bool:
    """Whether no other rank has failed before this one, or because of what this one failed of."""
    if watch is None:
        if rank != 0:
            _wait_for_agent()  # rank 0 has most likely found the same
        return True
    deadline = time.monotonic() + _PATIENCE
    while lost and time.monotonic() < deadline:  # the one that is gone may have said why
        if watch.heard:
            return False
        time.sleep(0.1)
    return watch.announce()


def _wait_for_agent() -> None:
    """Let torchrun's agent end this process, if rank 0 ends now."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(_PATIENCE)
