"""A stage that ends when more compute lowers its loss too slowly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from statistics import linear_regression
from typing import Annotated

from megatron_grow.inputs.ranges import Range
from megatron_grow.rules.base import Observation, Rule


@dataclass(frozen=True)
class LossSlope(Rule):
    """End the stage when log loss over log compute is flatter than ``slope``.

    Staged training (Shen et al. 2022, arXiv 2203.06211): while a model trains efficiently, its
    loss falls as a power of the compute, a straight line in logarithms; where the line has become
    flatter than a threshold, a larger model would use the same compute better. The paper's code
    has -0.0575 before a growth in depth, -0.0475 in width, -0.03 in both, and -0.052 for where
    training stops being compute-optimal. Compute is that of the whole run so far.
    """

    slope: Annotated[float, Range(below=0)] = -0.0575
    """The stage ends when the curve's slope is above this: less steep, or rising."""
    window: Annotated[int, Range(least=2)] = 5
    """Observations through which the line is drawn, by least squares; it is not drawn through
    fewer."""

    def ends(self, history: Sequence[Observation]) -> str | None:
        """As :meth:`.Rule.ends`."""
        if len(history) < self.window:
            return None
        seen = history[-self.window :]
        compute, loss = [log(o.flops) for o in seen], [log(o.loss) for o in seen]
        slope = linear_regression(compute, loss).slope
        if slope <= self.slope:
            return None
        return f"slope {slope:.6g} of log loss over log compute is above {self.slope:g}"
