"""How a process that computes on the CPU gets and keeps its memory."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's mallopt()."""


def keep_freed_memory() -> None:
    """Make the allocator reuse large blocks instead of giving each back to the kernel.

    Training and conversions make and free blocks of the same few sizes all the time, and the kernel
    clears every page that it hands out: three times as slow as filling the same page again, and
    slower than computing an activation. A GPU's allocator keeps what is freed as well.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def give_back_freed_memory() -> None:
    """Give the kernel what is free now."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None
