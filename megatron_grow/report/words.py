"""How a report writes numbers."""

from __future__ import annotations

from typing import Any

from megatron_grow.train.rows import is_accuracy


def value(name: str, number: float | None) -> str:
    """A loss, or a share of what was counted, such as an accuracy, which is a percentage."""
    if number is None:
        return "-"
    return f"{100 * number:.2f} %" if is_accuracy(name) else f"{number:.4f}"


def gap(name: str, ours: float | None, twin: float | None, digits: int = 2) -> str:
    """How far ``ours`` is above the twin: in percent of it, of a share in points.

    None of a loss that was 0, such as one of which an evaluation had nothing.
    """
    if ours is None or twin is None:
        return "-"
    if is_accuracy(name):
        return f"{100 * (ours - twin):+.{digits}f} points"
    return f"{100 * (ours / twin - 1):+.{digits}f} %" if twin else "-"


def is_worth(gap_percent: float | None, tolerance: float) -> bool:
    """Whether a loss that is so far above another's is as good, within ``tolerance``, relative.

    What was not spent for a worse loss is no saving.
    """
    return gap_percent is not None and gap_percent <= 100 * tolerance


def saved(percent: float | None, *, worth: bool = True, digits: int = 1) -> str:
    """What a run did not spend: a saving only if its result is ``worth`` that of the other."""
    if percent is None:
        return "-"
    word = "more" if percent < 0 else "saved" if worth else "less"
    return f"{abs(percent):.{digits}f} % {word}"


def at_equal_loss(found: dict[str, Any]) -> str:
    """What a run cost, beside finished fixed-size runs of the same loss (:func:`.fair.equal_loss`).

    A span over seeds where each seed's loss lies between theirs.
    """
    if found["beyond"]:
        better = {"below": "better than", "above": "worse than"}[found["beyond"]]
        if found["lengths"] == 1:
            return f"one length gives no curve; {better} it"
        return f"beyond the runs, {better} all"
    ends = found["saved_percent_of_seeds"]
    if None in ends or ends[0] == ends[1]:
        return saved(found["saved_percent"])
    least, most = (saved(end, digits=0) for end in ends)
    return f"{saved(found['saved_percent'])} ({least} .. {most})"


def plural(count: int, word: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count} {word}{'s' if count != 1 else ''}"
