"""Mathematics of loss curves, for the rules that read them and for reports."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def reached(where: Sequence[float], losses: Sequence[float], level: float) -> float | None:
    """Where a curve has first fallen to ``level``, on straight lines between its points.

    Args:
        where: steps, or logarithms of compute; ascending.
        losses: one at each of them; a NaN ends the curve there.
        level: a loss.

    Returns:
        None if it never falls so far, or begins below: nothing is extrapolated.
    """
    points = list(zip(where, losses, strict=True))
    if points and points[0][1] == level:
        return float(points[0][0])
    for (before, above), (after, below) in pairwise(points):
        if above > level >= below:
            return float(before + (above - level) / (above - below) * (after - before))
    return None
