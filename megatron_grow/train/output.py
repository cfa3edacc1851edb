"""Where a run reports: the console, and on rank 0 the rows of its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_grow.cost.flops import flops_at_step
from megatron_grow.methods.base import Context
from megatron_grow.parallel.agreement import any_rank
from megatron_grow.train.console import Console
from megatron_grow.train.metrics import MetricsLog
from megatron_grow.train.rows import Progress, kind_of


class Output:
    """What all parts of the trainer report to."""

    def __init__(self, console: Console, metrics: MetricsLog | None) -> None:
        """``metrics`` on rank 0 alone."""
        self.console = console
        self._metrics = metrics

    @property
    def wandb_id(self) -> str | None:
        """The run's name at Weights & Biases."""
        return self._metrics.wandb_id if self._metrics else None

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row to the metrics."""
        if self._metrics is not None:
            self._metrics.write(row)

    def rows(self, event: str, ctx: Context) -> list[dict[str, Any]]:
        """Those of an event that the stage has so far; on rank 0 alone."""
        rows = self._metrics.rows() if self._metrics else []
        return [row for row in rows if kind_of(row) == event and row["stage"] == ctx.stage.index]

    def lacks_evaluation(self, ctx: Context) -> bool:
        """Whether the rows so far lack that of this step; every rank takes part."""
        log = self._metrics
        return any_rank(log is not None and not log.has_evaluation(ctx.step, ctx.stage.index))[0]


def progress(ctx: Context) -> Progress:
    """Where the run is."""
    return {
        "step": ctx.step,
        "stage": ctx.stage.index,
        "num_layers": ctx.stage.model.num_layers,
        "consumed_tokens": ctx.stage.tokens_at(ctx.step),
        "flops_total": flops_at_step(ctx.stages, ctx.step, "total", ctx.run.data),
        "flops_block": flops_at_step(ctx.stages, ctx.step, "blocks", ctx.run.data),
    }
