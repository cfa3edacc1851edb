"""A stage that ends so that the grown model has time enough to catch up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import PathText, Positive
from megatron_grow.rules.base import Observation, Rule
from megatron_grow.rules.calibration import Calibration


@dataclass(frozen=True)
class Calibrated(Rule):
    """End the stage as late as the measured mixing time allows: at T - t_mix.

    Bu 2025 (arXiv 2511.04981): under a constant rate the grown model comes up with the fixed-size
    one in a number of steps, t_mix, that two short runs tell (``tools/calibrate.py``); of a run of
    T steps the first T - t_mix may be the small model's. T is this run's, which may be longer than
    the one that was calibrated.
    """

    calibration: PathText
    """A file of ``tools/calibrate.py``."""
    reserve: Positive = 1.0
    """How many times the mixing time is left after the growth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.growth_step <= self.stage.first_step:
            raise UserError(
                f"calibration={self.calibration} asks for {self._reserved} steps after the growth, "
                f"and of train.train_iters={self.run.train.train_iters} none would be left before"
            )

    @cached_property
    def growth_step(self) -> int:
        """The last step of the stage, if the rule is asked there."""
        return self.run.train.train_iters - self._reserved

    @cached_property
    def _reserved(self) -> int:
        found = Calibration.read(self.calibration)
        found.check_target(self.run.model, self.calibration)
        if found.mixing_steps is None:
            raise UserError(
                f"calibration={self.calibration} has no mixing_steps: the grown model did not "
                "come up with the fixed-size one; make it with longer runs"
            )
        return round(self.reserve * found.mixing_steps)

    def ends(self, history: Sequence[Observation]) -> str | None:
        """As :meth:`.Rule.ends`; at the last question that leaves so many steps."""
        assert self.stage.rule is not None
        step = history[-1].step
        if step + self.stage.rule.every <= self.growth_step:
            return None
        left = self.run.train.train_iters - step
        return f"{left} steps are left, and mixing takes {self._reserved}"
