"""Layers that share their parameters, for tests; a run file names it by import path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import torch

from megatron_grow.live.pieces import Shard
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.parallel.agreement import reduced

Storage = Callable[[Shard], torch.Tensor]


@dataclass
class Tied(TrainingMethod):
    """Train all layers as one: each takes the sum of their gradients. A weight that layers share
    counts once in the gradient norm.

    The stage may end where the gradients of layers no longer agree.
    """

    least_correlation: float = -1.0

    def on_stage_start(self, ctx: Context) -> None:
        """Begin with the first layer, in all that is kept of it."""
        shards = [shard for shard in ctx.live.shards() if ctx.live.tensors[shard.key].stacked]
        for kind in (None, *shards[0].state):  # every rank has a part of every layer's state, here
            self._share(ctx, lambda s, k=kind: s.state[k] if k else s.main, only_first=True)
        ctx.live.write_back()

    def after_backward(self, ctx: Context) -> None:
        """Give each layer the sum."""
        alone, self._sum = self._share(ctx, lambda shard: shard.main.grad)
        self._others = ctx.stage.model.num_layers - 1
        self._correlation = (self._sum - alone) / (self._others * alone)

    def before_update(self, ctx: Context, seen: bool) -> None:
        """Take the others out of the norm."""
        ctx.grad_norm = sqrt(ctx.grad_norm**2 - self._others * self._sum)

    def after_step(self, ctx: Context) -> None:
        """All ranks know the same number."""
        if self._correlation < self.least_correlation:
            ctx.end_stage(f"gradients of layers correlate by {self._correlation:.3f}")

    def _share(
        self, ctx: Context, storage: Storage, *, only_first: bool = False
    ) -> tuple[float, float]:
        """Write the sum over layers to each of them; sums of squares before and of it."""
        sums = {
            key: torch.zeros(1, *tensor.shape[1:])
            for key, tensor in ctx.live.tensors.items()
            if tensor.stacked
        }
        shards = [shard for shard in ctx.live.shards() if shard.key in sums]

        def places(shard: Shard) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
            for ((layer, _), *rest), view in shard.views(storage(shard)):
                inside = (slice(None), *(slice(*part) for part in rest))
                yield layer, view, sums[shard.key][inside]

        alone = torch.zeros((), dtype=torch.float64)
        for shard in shards:
            for layer, view, total in places(shard) if shard.owned else ():
                total += view if layer == 0 or not only_first else 0.0
                alone += view.double().square().sum()
        # One buffer for all layers, whatever rank has which part of them: they get the same bits.
        for total in (*sums.values(), alone):
            reduced(total, "sum")
        for shard in shards:
            for _, view, total in places(shard):
                view.copy_(total)
        whole = sum(total.double().square().sum().item() for total in sums.values())
        return alone.item(), whole
