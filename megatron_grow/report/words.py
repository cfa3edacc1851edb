"""How a report writes numbers."""

from __future__ import annotations

from megatron_grow.train.rows import is_share


def value(name: str, number: float | None) -> str:
    """A loss, or a share of what was counted, such as an accuracy, which is a percentage."""
    if number is None:
        return "-"
    return f"{100 * number:.2f} %" if is_share(name) else f"{number:.4f}"


def gap(name: str, ours: float | None, twin: float | None, digits: int = 2) -> str:
    """How far ``ours`` is above the twin: in percent of it, of a share in points.

    None of a loss that was 0, such as one of which an evaluation had nothing.
    """
    if ours is None or twin is None:
        return "-"
    if is_share(name):
        return f"{100 * (ours - twin):+.{digits}f} points"
    return f"{100 * (ours / twin - 1):+.{digits}f} %" if twin else "-"
