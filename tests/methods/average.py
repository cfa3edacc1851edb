"""A method that keeps tensors, for tests; a run file names it by import path."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.state.piece import Piece

DECAY = 0.75


@dataclass
class Average(TrainingMethod):
    """A moving average of the weights, of every few steps."""

    every: int = 5

    def on_stage_start(self, ctx: Context) -> None:
        self.averages = [shard.main.detach().clone() for shard in ctx.live.shards()]

    def after_step(self, ctx: Context) -> None:
        if ctx.step % self.every == 0:
            for average, shard in zip(self.averages, ctx.live.shards(), strict=True):
                average.lerp_(shard.main.detach(), 1 - DECAY)

    def on_stage_end(self, ctx: Context) -> None:
        self.averages = []

    def pieces(self, ctx: Context) -> list[Piece]:
        both = zip(ctx.live.shards(), self.averages, strict=True)
        return [piece for shard, kept in both for piece in shard.pieces("average", kept)]
