"""What a row on the sizes of layers costs the step that it is of."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import torch

from megatron_grow.benchmark.contestants import MegatronGrow, train_section
from megatron_grow.benchmark.gang import Gang
from megatron_grow.benchmark.report import Report
from megatron_grow.config.model import ModelConfig
from megatron_grow.methods.base import Context
from megatron_grow.train.console import Console
from megatron_grow.train.layer_rows import LayerRows
from megatron_grow.train.loop import Loop
from megatron_grow.train.metrics import MetricsLog
from megatron_grow.train.output import Output

INTERVAL = 100
"""Of the examples."""


class Measured(MegatronGrow):
    """Writes a row of every other step, to metrics.jsonl and TensorBoard."""

    def step(self) -> float:
        """Train for a step; seconds of the GPU, or of all threads where there is none: a step on a
        CPU that others use takes twice as long as the one before for no reason of its own."""
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        batches = self._micro_batches()
        began = clock()
        self.loop.step(batches)
        torch.cuda.synchronize()
        return clock() - began

    def _loop(self, steps: int) -> Loop:
        self._directory = TemporaryDirectory(ignore_cleanup_errors=True)
        metrics = MetricsLog(self._directory.name, tensorboard=True)
        rows = LayerRows(Output(Console(1, enabled=False), metrics))
        plan = self.plan(self.live.stage.index)
        return Loop(Context(self.config, self.stages, self.live, plan, steps), [rows])


def measure(
    model: ModelConfig, batch: int, precision: str, threads: int, repetitions: int
) -> Report:
    """Time steps with a row and without one in turns."""
    train = replace(train_section(model, batch, precision), layers_interval=2)
    with Gang(Measured, model, train, threads=threads) as gang:
        turns = [[gang.call("step")[0] for _ in range(2)] for _ in range(repetitions + 1)]
    plain, with_row = zip(*turns[1:], strict=True)  # the first step has a row too
    more = [100 * (b / a - 1) for a, b in zip(plain, with_row, strict=True)]
    spread = quantiles(more, n=4)
    rows = [
        [f"every {interval} steps" if interval > 1 else "each step"]
        + [f"{percent / interval:.3f}" for percent in (median(more), spread[0], spread[2])]
        for interval in (1, INTERVAL)
    ]
    return Report(
        f"Rows of layers: {model.num_layers} layers, d={model.hidden_size}, "
        f"V={model.vocabulary}, T={model.max_position_embeddings}, batch {batch}, {precision}, "
        f"a step of {1e3 * median(plain):.0f} ms",
        ["rows", "% of a step, median", "lower quartile", "upper quartile"],
        rows,
        {"plain_seconds": plain, "with_row_seconds": with_row, "percent_more": more},
    )
