"""The training rows: means over the steps of each log interval."""

from __future__ import annotations

import time

import torch

from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.train.output import Output, progress
from megatron_grow.train.rows import TrainRow


class TrainingRows(TrainingMethod):
    """Reports every ``train.log_interval`` steps, and where a stage ends or the run stops."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._totals, self._updates, self._steps, self._seconds = torch.zeros(()), 0, 0, 0.0

    def after_step(self, ctx: Context) -> None:
        """Every step is in some row."""
        self._steps += 1
        self._seconds += time.perf_counter() - ctx.began
        if ctx.updated:
            assert ctx.totals is not None
            self._totals = self._totals.to(ctx.totals.device) + ctx.totals
            self._updates += 1
        if ctx.step % ctx.run.train.log_interval == 0 or ctx.ends or ctx.stopping:
            self._report(ctx)
            self._totals, self._updates, self._steps, self._seconds = torch.zeros(()), 0, 0, 0.0

    def _report(self, ctx: Context) -> None:
        objective = ctx.live.objective
        means = objective.means(self._totals) if self._updates else objective.unknown()
        step_time = self._seconds / self._steps
        row: TrainRow = {
            **progress(ctx),
            "loss": means.pop("loss"),
            "lr": ctx.lr,
            "grad_norm": ctx.grad_norm,
            "tokens_per_second": ctx.stage.batch.tokens / step_time,
            "step_time": step_time,
        }
        self._output.console.train_row(row, means)
        self._output.write({**row, **means})
