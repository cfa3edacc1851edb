"""The training rows: means over the steps of each log interval."""

from __future__ import annotations

import time

import torch

from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.parallel import cpu
from megatron_grow.parallel.communication import CommunicationWaits
from megatron_grow.train.gpu import Gpu
from megatron_grow.train.output import Output, progress
from megatron_grow.train.rows import TrainRow


class TrainingRows(TrainingMethod):
    """Reports every ``train.log_interval`` steps, and where a stage ends or the run stops."""

    def __init__(self, output: Output, gpu: Gpu | None = None) -> None:
        self._output, self._gpu = output, gpu
        self._waits = CommunicationWaits(cpu.device())
        self._begin()

    def _begin(self) -> None:
        self._totals, self._updates, self._steps = torch.zeros(()), 0, 0
        self._seconds = self._waited = 0.0

    def before_step(self, ctx: Context) -> None:
        """See how long ranks wait for each other."""
        self._waits.begin(ctx.step, ctx.run.train.log_interval)

    def after_step(self, ctx: Context) -> None:
        """Every step is in some row."""
        self._waits.end()
        self._steps += 1
        self._seconds += time.perf_counter() - ctx.began
        self._waited += ctx.waited
        if ctx.updated:
            assert ctx.totals is not None
            # Of the first step's: zeros from the CPU would wait for the device.
            self._totals = self._totals + ctx.totals if self._updates else ctx.totals
            self._updates += 1
        if ctx.step % ctx.run.train.log_interval == 0 or ctx.ends or ctx.stopping:
            self._report(ctx)
            self._begin()

    def _report(self, ctx: Context) -> None:
        objective = ctx.live.objective
        means = objective.means(self._totals) if self._updates else objective.unknown()
        step_time = self._seconds / self._steps
        speed = ctx.stage.batch.tokens / step_time
        row: TrainRow = {
            **progress(ctx),
            "loss": means.pop("loss"),
            "lr": ctx.lr,
            "grad_norm": ctx.grad_norm,
            "tokens_per_second": speed,
            "step_time": step_time,
        }
        if (share := self._waits.share()) is not None:
            row["communication_wait"] = share
        waited = self._waited / self._seconds
        gpu = self._gpu.numbers(ctx, speed, waited) if self._gpu is not None else None
        self._output.console.train_row(row, means, gpu)
        self._output.write({**row, **means, **(gpu or {})})
