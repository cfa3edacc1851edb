"""How the process gets and keeps its memory."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of glibc's mallopt()."""


def keep_freed_memory() -> None:
    """Make the allocator reuse large blocks instead of giving each back to the kernel.

    A conversion makes and frees blocks of the same few sizes all the time. The kernel clears every
    page that it hands out, at about a third of the speed at which the same page is filled again.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    # One arena, for all threads: others cannot hold blocks of this size.
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, -1)):
        libc.mallopt(option, value)
