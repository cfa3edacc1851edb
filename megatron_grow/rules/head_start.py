"""A stage that ends when a step of the grown model is worth more."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, linear_regression
from typing import Annotated

from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import PathText, Range
from megatron_grow.rules.base import Observation, Rule
from megatron_grow.rules.calibration import Calibration
from megatron_grow.rules.curves import reached


@dataclass(frozen=True)
class HeadStart(Rule):
    """End the stage when its model gains less loss for a FLOP than the target would from there.

    A small stage of ``t`` steps gives the grown model a head start of ``h(t)`` steps of a run from
    nothing: about those after which the fixed-size run of a calibration (``tools/calibrate.py``)
    has the small model's loss. To come as far as ``s`` such steps costs ``c t + C (s - h(t))``, for
    costs ``c`` and ``C`` of a step. That is least where ``h'(t) = c / C``: where both curves are
    equally steep over FLOPs. What a growth itself loses moves ``h`` but not that place, as long as
    it does not depend on ``t``.
    """

    calibration: PathText
    """A file of ``tools/calibrate.py``."""
    window: Annotated[int, Range(least=2)] = 5
    """Evaluations through which the slopes of both are drawn, by least squares."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fixed_size.check_target(self.run.model, self.calibration)
        asked = self.stage.rule
        if asked and not (asked.validation and asked.loss_name == "loss"):
            raise UserError(
                "losses=training cannot be compared with the calibration's curve; head_start needs "
                "losses: validation, and loss_name: loss"
            )

    @cached_property
    def _fixed_size(self) -> Calibration:
        return Calibration.read(self.calibration)

    def ends(self, history: Sequence[Observation]) -> str | None:
        """As :meth:`.Rule.ends`; None where the calibration's curve does not have that loss."""
        if len(history) < self.window:
            return None
        seen = history[-self.window :]
        ours = _slope([o.flops for o in seen], [o.loss for o in seen])
        theirs = self._slope_at(fmean(o.loss for o in seen))
        if theirs is None or ours <= theirs:
            return None
        return f"{-ours:.4g} of loss for a FLOP, and {-theirs:.4g} in the grown model"

    def _slope_at(self, loss: float) -> float | None:
        """Of the fixed-size curve over its FLOPs, around where it has that loss."""
        curve = self._fixed_size
        place = reached(curve.flops, curve.losses, loss)
        if place is None:
            return None
        first = bisect_left(curve.flops, place) - self.window // 2
        first = max(0, min(first, len(curve.flops) - self.window))
        around = slice(first, first + self.window)
        return _slope(curve.flops[around], curve.losses[around])


def _slope(flops: Sequence[float], losses: Sequence[float]) -> float:
    return linear_regression(flops, losses).slope
