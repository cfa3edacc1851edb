"""The line with which a process ends that cannot go on, and what is in it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

_HOSTS_NAMED = 4
"""In one line, at most."""
_checkpoint: Path | None = None


def say(text: str) -> None:
    """Print ``text`` on standard error, and let torchrun's report end with it."""
    print(text, file=sys.stderr, flush=True)
    tell_agent(text)


def tell_agent(text: str) -> None:
    """Make torchrun's report of a job that is not done end with ``text``.

    The file is that of ``torch.distributed.elastic.multiprocessing.errors``. It is written by hand
    because a mistake in the run file is found before torch is imported.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        told = {"py_callstack": text, "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError), open(path, "w") as file:
            json.dump({"message": {"message": text, "extraInfo": told}}, file)


def of_this_rank() -> str:
    """`` on rank 3 (host)``; nothing in a job of one."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ""
    return f" on rank {os.environ['RANK']} ({socket.gethostname()})"


def remember_checkpoint(path: Path) -> None:
    """Name ``path`` as what a lost run goes on from.

    It is kept here, since a file system may be what has been lost.
    """
    global _checkpoint
    _checkpoint = path


def way_on() -> str:
    """What to do once whatever was lost is back."""
    again = "once all hosts are well, run the same command"
    if _checkpoint is None:
        return f"no checkpoint has been saved: {again} again"
    return f"the last complete checkpoint is {_checkpoint}: {again} with --checkpoint.load auto"


def named(ranks: Mapping[int, str]) -> str:
    """Ranks and their hosts: ``rank 8-15 (node1), 17 (node2)``.

    Args:
        ranks: the host of each, in the order of ranks.
    """
    hosts = [(host, [*of_host]) for host, of_host in groupby(ranks, ranks.__getitem__)]
    told = [f"{_ranges(numbers)} ({host})" for host, numbers in hosts[:_HOSTS_NAMED]]
    more = sum(len(numbers) for _, numbers in hosts[_HOSTS_NAMED:])
    return f"rank {', '.join(told)}" + (f" and {more} more" if more else "")


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
