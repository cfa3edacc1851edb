"""A rate of its own for what is new after a growth: from 0 to that of all else, over some steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.growth.plan import Plan
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Count, check_fields
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.methods.selection import Selected, check_old, in_box, old_entries, select


@dataclass
class WarmUpNew(TrainingMethod):
    """Scale what an update changes in new entries: in the stage's k-th step by ``k / iters``.

    New is every entry that the stage before had not: those of new layers and new units, copies
    included. It holds for every optimizer, weight decay included; the moments are those of a run
    without it.
    """

    iters: Count
    """Steps until new entries train as all others do."""

    def __post_init__(self) -> None:
        check_fields(self)
        self._selected: list[Selected] = []
        self._before: list[torch.Tensor] = []

    def check(self, stage: Stage, run: RunConfig, plan: Plan, where: str) -> None:
        """Refuse a stage in which nothing is new, or nothing is old."""
        check_old(plan, where)
        flags = [
            torch.stack([had.all(), had.any()])
            for tensor in plan.tensors.values()
            for had in old_entries(plan, tensor).values()
        ]
        all_old, any_old = torch.stack(flags).T
        if all_old.all():
            raise UserError(f"{where} warms up what is new; the stage has nothing that is")
        if not any_old.any():
            raise UserError(
                f"{where} warms up what is new beside what is not; all is new in this stage: "
                "use schedule.lr_warmup_fraction"
            )

    def on_stage_start(self, ctx: Context) -> None:
        """Find it in what this rank updates."""
        if self._ramp(ctx) < 1.0:
            old = {key: old_entries(ctx.plan, tensor) for key, tensor in ctx.plan.tensors.items()}
            self._selected = list(
                select(ctx.live.shards(), lambda key, box: ~in_box(old[key], box))
            )

    def before_step(self, ctx: Context) -> None:
        """Nothing is left to do once the rate is that of all else."""
        if self._ramp(ctx) >= 1.0:
            self.on_stage_end(ctx)

    def before_update(self, ctx: Context, seen: bool) -> None:
        """Remember the weights."""
        self._before = [data.clone() for data, _ in self._weights()]

    def after_update(self, ctx: Context) -> None:
        """Take back a part of what the update has changed."""
        for (data, mask), before in zip(self._weights(), self._before, strict=True):
            torch.where(mask, before.lerp_(data, self._ramp(ctx)), data, out=data)
        self._before = []

    def on_stage_end(self, ctx: Context) -> None:
        """Let go of the stage's memory."""
        self._selected = []

    def _weights(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Views of the weights that are not all old, and masks of what is new."""
        return [
            place for selected in self._selected for place in selected.places(selected.shard.main)
        ]

    def _ramp(self, ctx: Context) -> float:
        """The share of the rate; 0 before the first step."""
        return (ctx.step - ctx.stage.first_step) / self.iters
