"""Seconds, as a reader has them."""

from __future__ import annotations

_UNITS = (("days", 86400.0), ("h", 3600.0), ("min", 60.0))
_PARTS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


def duration(seconds: float) -> str:
    """In days, hours or minutes if there are two of them, else in seconds or a part of one."""
    for unit, size in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    for unit, size in _PARTS:
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return "0"
