"""Our step beside a plain PyTorch GPT's of the same shape, taking turns on one device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any

from megatron_grow.benchmark.gpu import device
from megatron_grow.benchmark.gpu.plain import PlainTrainer
from megatron_grow.benchmark.gpu.runner import Row, Task, Workers
from megatron_grow.benchmark.gpu.shapes import Attempt, Shape, Sizes
from megatron_grow.benchmark.gpu.speed import figures
from megatron_grow.benchmark.gpu.trainer import WARM_UP, Trainer

OURS, PLAIN = "megatron_grow", "torch.compile"
_TURNS = (OURS, PLAIN, OURS)
"""Each alone on the device, so that each has all of its memory; ours before and after."""
_CONTESTANTS: dict[str, Callable[..., Any]] = {OURS: Trainer, PLAIN: PlainTrainer}


def tasks(sizes: Sizes) -> list[Task]:
    """Both shapes of which a whole step fits."""
    return [
        Task("beside", shape.name, 60.0, partial(measure, shape, sizes.repetitions), second)
        for shape, second in ((sizes.llama, False), (sizes.gpt2, True))
    ]


def measure(shape: Shape, repetitions: int, workers: Workers) -> Row:
    """Each by the first attempt that fits."""
    turns: dict[str, list[Row]] = {OURS: [], PLAIN: []}
    for name in _TURNS:
        turns[name].append(_fitting_turn(name, shape, repetitions, workers))
    speeds = {name: mean(row["tokens_per_second"] for row in rows) for name, rows in turns.items()}
    return {
        **{name: rows[0] for name, rows in turns.items()},
        "turns": turns,
        "ratio": speeds[OURS] / speeds[PLAIN],
    }


def _fitting_turn(name: str, shape: Shape, repetitions: int, workers: Workers) -> Row:
    for attempt in shape.attempts:
        workers.renew()
        if row := workers.call(turn, name, shape, attempt, repetitions):
            return row
    raise RuntimeError(f"{name} does not fit at {shape.name}")


def turn(name: str, shape: Shape, attempt: Attempt, repetitions: int) -> Row | None:
    """Time a contestant; None where there is no memory for it."""
    device.start_peak()
    try:
        trainer = _CONTESTANTS[name](shape.model, shape.train(attempt))
        trainer.steps(WARM_UP)
        seconds = trainer.steps(repetitions)
    except device.OUT_OF_MEMORY:
        return None
    return figures(shape, shape.model, attempt, seconds) | device.peak_memory()
