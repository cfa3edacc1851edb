"""What methods of shared layers have in common: whether the gradients of layers agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import shown
from megatron_grow.live.correlation import Pair
from megatron_grow.methods.base import Context


def pairs_of(groups: Sequence[Sequence[int]]) -> list[Pair]:
    """The layers of each group that follow each other."""
    return [pair for group in groups for pair in pairwise(group)]


@dataclass(frozen=True)
class Correlations:
    """How the gradients of pairs of layers correlate in one step."""

    pairs: list[Pair]
    values: list[float]

    @staticmethod
    def measure(ctx: Context, pairs: list[Pair]) -> Correlations:
        """Before they are summed; every rank takes part."""
        return Correlations(pairs, ctx.live.gradient_correlations(pairs))

    def below(self, rho: float) -> list[Pair]:
        """Pairs that correlate by less than ``rho``."""
        return [pair for pair, value in zip(self.pairs, self.values, strict=True) if value < rho]

    def report(self, ctx: Context, rho: float) -> None:
        """A row, and a line on the console."""
        below, mean = len(self.below(rho)), sum(self.values) / len(self.values)
        ctx.report(
            "gradient_correlation",
            f"gradients of shared layers correlate by {min(self.values):.3f} to "
            f"{max(self.values):.3f}, {mean:.3f} on average; {below} of {len(self.pairs)} pairs "
            f"are below {rho:g}",
            pairs=self.pairs,
            correlations=self.values,
            mean=mean,
            below=below,
        )


def check_measured(stage: Stage, run: RunConfig, every: int, times: int, where: str) -> None:
    """Refuse a stage that is over before gradients were compared often enough.

    Args:
        stage: at whose last step a comparison is of no use any more.
        run: whose stage it is.
        every: steps between comparisons.
        times: how many are needed.
        where: begins the message of an error.
    """
    if isinstance(_until(stage, run), dict) and stage.rule is None:
        return  # it has ended, before it had to
    if (most := (stage.last_step - 1) // every) < times:
        raise UserError(
            f"{where}.every={every}: gradients are compared {most} times before step "
            f"{stage.last_step}, where the stage ends, and must be {times} times; make every "
            "smaller, or the stage longer"
        )


def check_bound(stage: Stage, run: RunConfig, where: str) -> None:
    """Refuse a stage that ends at a step, where a method ends it before.

    Raises:
        UserError: its message begins with ``where``.
    """
    until = _until(stage, run)
    if not isinstance(until, dict):
        raise UserError(
            f"{where} ends the stage; stages[{stage.index}].until={shown(until)} must say where it "
            "ends at the latest, as in {at_most: 0.8}"
        )


def _until(stage: Stage, run: RunConfig) -> Any:
    """As the run file has it."""
    return run.stages[stage.index].until if run.stages else None
