"""Layers that train as one until their gradients no longer agree, and part group by group.

SWE-M of Yang et al. 2021, "Speeding up Deep Model Training by Sharing Weights and Then Unsharing"
(arXiv 2110.03848). The model has all its layers; those of a group are kept the same to the bit. So
a split moves nothing between ranks, and a checkpoint is that of a model that shares nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from megatron_grow.config.layer_sharing import groups_of, unique_layers
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.growth.plan import Plan
from megatron_grow.inputs.errors import AgreedError, UserError
from megatron_grow.inputs.ranges import Count, CountOrZero, Range, check_fields, shown
from megatron_grow.live.correlation import Pair
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.methods.correlations import Correlations, check_bound, check_measured, pairs_of


@dataclass
class SplitSharing(TrainingMethod):
    """Train the layers of each group as one; split a group between two layers that follow each
    other in it and whose gradients correlate by less than ``rho``."""

    aligns_layers: ClassVar[bool] = True

    layer_sharing: str | list[CountOrZero]
    """The groups at first, as ``model.layer_sharing`` says them."""
    every: Count = 1000
    """Steps: at their multiples gradients are compared."""
    rho: Annotated[float, Range(least=-1, most=1)] = 0.5
    ends_stage: bool = False
    """Whether the stage ends when no layers train as one any more."""

    def __post_init__(self) -> None:
        check_fields(self)
        self._groups: list[list[int]] | None = None
        self._splits: list[dict[str, Any]] = []
        self._found: Correlations | None = None

    def check(self, stage: Stage, run: RunConfig, plan: Plan, where: str) -> None:
        """Refuse a model whose layers are stored as one, and to share nothing or never compare."""
        if stage.model.sharing is not None:
            raise UserError(
                f"{where} splits the groups of a model that has all its layers; leave out "
                f"model.layer_sharing={stage.model.layer_sharing}, or unshare its layers by a "
                "growth, as in grow: {depth: unshare}"
            )
        field = f"{where}.layer_sharing"
        if unique_layers(self.layer_sharing, stage.model.num_layers, field) is None:
            raise UserError(f"{field}={self.layer_sharing} shares no layers")
        if self.ends_stage:
            check_bound(stage, run, f"{where}.ends_stage")
        check_measured(stage, run, self.every, 1, where)

    def on_stage_start(self, ctx: Context) -> None:
        """Make the layers of each group what its first is, whatever they were."""
        groups = groups_of(unique_layers(self.layer_sharing, ctx.stage.model.num_layers) or ())
        for done in self._splits:
            groups = _left([split(group, done["between"]) for group in groups])
        if self._groups not in (None, groups):
            raise AgreedError(
                f"stages[{ctx.stage.index}].methods: split_sharing with "
                f"layer_sharing={shown(self.layer_sharing)} is not what the checkpoint was trained "
                f"with, in which {_shown(self._groups)} train as one; restore what it was"
            )
        self._groups = groups
        ctx.live.share_layers(groups, copy_first=True)

    def before_sharing(self, ctx: Context) -> None:
        """Compare the gradients of layers, which are not summed yet."""
        self._found = None
        if ctx.step % self.every == 0 and (pairs := pairs_of(self._groups or ())):
            if differ := ctx.live.differing_layers(pairs):
                raise AgreedError(
                    f"stages[{ctx.stage.index}].methods: layers {differ[0][0]} and {differ[0][1]} "
                    "train as one and are no longer the same; another method updates one of them "
                    "alone"
                )
            self._found = Correlations.measure(ctx, pairs)

    def after_step(self, ctx: Context) -> None:
        """Split, and end the stage."""
        if self._found is None or not ctx.updated:  # a gradient without an update says nothing
            return
        self._found.report(ctx, self.rho)
        if cuts := self._found.below(self.rho):
            self._split(ctx, cuts)
        if not self._groups and self.ends_stage:
            ctx.end_stage("no layers train as one any more")

    def state_dict(self) -> dict[str, Any]:
        """The groups as they are, and where which were split."""
        return {"groups": self._groups, "splits": self._splits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with these groups."""
        self._groups, self._splits = state["groups"], state["splits"]

    def _split(self, ctx: Context, cuts: list[Pair]) -> None:
        """Split groups between the layers of each of ``cuts``."""
        parts_of = [split(group, cuts) for group in self._groups or ()]
        for parts in parts_of:
            for part in parts if len(parts) > 1 else ():
                # The gradient was a sum over the group; it is one over the part from now on.
                ctx.live.scale_moments(part, len(part) / sum(map(len, parts)))
        self._groups = _left(parts_of)
        self._splits.append({"step": ctx.step, "between": [[*pair] for pair in cuts]})
        ctx.live.share_layers(self._groups)
        where = ", ".join(f"{first} | {second}" for first, second in cuts)
        ctx.report(
            "split",
            f"shared layers part at {where}; still shared: {_shown(self._groups)}",
            between=cuts,
            groups=self._groups,
        )


def split(group: Sequence[int], cuts: Collection[Sequence[int]]) -> list[list[int]]:
    """The parts of a group that is split between the layers of each of ``cuts``."""
    at = {tuple(cut) for cut in cuts}
    parts = [[group[0]]]
    for pair in pairwise(group):
        if pair in at:
            parts.append([])
        parts[-1].append(pair[1])
    return parts


def _left(parts_of: Sequence[list[list[int]]]) -> list[list[int]]:
    """The groups that are left when each has become parts."""
    return [part for parts in parts_of for part in parts if len(part) > 1]


def _shown(groups: Sequence[list[int]]) -> str:
    """Of layers, in words."""
    return (
        ", ".join(
            f"{group[0]}-{group[-1]}"
            if group == [*range(group[0], group[-1] + 1)]
            else "+".join(map(str, group))
            for group in groups
        )
        or "none"
    )
