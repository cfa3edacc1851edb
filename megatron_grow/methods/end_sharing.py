"""A stage of shared layers that ends when their gradients no longer agree.

SWE-A of Yang et al. 2021, "Speeding up Deep Model Training by Sharing Weights and Then Unsharing"
(arXiv 2110.03848).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from megatron_grow.config.layer_sharing import groups_of
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.growth.plan import Plan
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Count, Range, check_fields
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.methods.correlations import Correlations, check_bound, check_measured, pairs_of


@dataclass
class EndSharing(TrainingMethod):
    """End the stage when, ``times`` measurements running, the gradients of most pairs of layers
    that share their parameters correlate by less than ``rho``."""

    every: Count = 1000
    """Steps: at their multiples gradients are compared."""
    rho: Annotated[float, Range(least=-1, most=1)] = 0.5
    times: Count = 3

    def __post_init__(self) -> None:
        check_fields(self)
        self._below = 0
        self._found: Correlations | None = None

    def check(self, stage: Stage, run: RunConfig, plan: Plan, where: str) -> None:
        """Refuse a stage in which no layers share their parameters, or that ends at a step
        or too soon."""
        if stage.model.sharing is None:
            raise UserError(
                f"{where} ends a stage whose layers share their parameters; "
                f"stages[{stage.index}].model.layer_sharing is missing, such as "
                f"1x{stage.model.num_layers}"
            )
        check_bound(stage, run, where)
        check_measured(stage, run, self.every, self.times, where)

    def before_sharing(self, ctx: Context) -> None:
        """Compare the gradients of layers, which are not summed yet."""
        self._found = None
        if ctx.step % self.every == 0:
            pairs = pairs_of(groups_of(ctx.stage.model.sharing or ()))
            self._found = Correlations.measure(ctx, pairs)

    def after_step(self, ctx: Context) -> None:
        """Count, and end the stage."""
        if self._found is None or not ctx.updated:  # a gradient without an update says nothing
            return
        self._found.report(ctx, self.rho)
        below, pairs = len(self._found.below(self.rho)), len(self._found.pairs)
        self._below = self._below + 1 if 2 * below > pairs else 0
        if self._below >= self.times:
            ctx.end_stage(
                f"gradients of {below} of {pairs} pairs of shared layers correlate by less than "
                f"{self.rho:g}, those of most pairs {self._below} times running"
            )

    def state_dict(self) -> dict[str, Any]:
        """How many measurements running were below."""
        return {"below": self._below}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self._below = state["below"]
