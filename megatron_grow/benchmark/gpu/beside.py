"""Our step beside a plain PyTorch GPT's of the same shape, taking turns on one device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from megatron_grow.benchmark.gpu import device
from megatron_grow.benchmark.gpu.plain import PlainTrainer
from megatron_grow.benchmark.gpu.runner import Row, Task, Workers
from megatron_grow.benchmark.gpu.shapes import Attempt, Shape, Sizes
from megatron_grow.benchmark.gpu.speed import figures
from megatron_grow.benchmark.gpu.trainer import WARM_UP, Trainer

_TURNS = 3
_CONTESTANTS: dict[str, Callable[..., Any]] = {
    "megatron_grow": Trainer,
    "torch.compile": PlainTrainer,
}
_kept: dict[str, Any] = {}
"""What this process trains; it keeps its memory while the other takes its turn."""


def tasks(sizes: Sizes) -> list[Task]:
    """Both shapes of which a whole step fits."""
    return [
        Task("beside", shape.name, 60.0, partial(measure, shape, sizes.repetitions))
        for shape in (sizes.llama, sizes.gpt2)
    ]


def measure(shape: Shape, repetitions: int, workers: Workers) -> Row:
    """Both by the first attempt by which both fit at once."""
    for attempt in shape.attempts:
        if all(workers.call(_begin, name, shape, attempt, process=name) for name in _CONTESTANTS):
            break
        for name in _CONTESTANTS:
            workers.call(_end, process=name)
    else:
        raise RuntimeError(f"two of {shape.name} do not fit beside each other")
    times: dict[str, list[float]] = {name: [] for name in _CONTESTANTS}
    for _ in range(_TURNS):
        for name, seconds in times.items():
            seconds.append(workers.call(_steps, repetitions, process=name))
    row: Row = {}
    for name, seconds in times.items():
        row[name] = workers.call(_figures, shape, attempt, median(seconds), process=name)
        row[name]["turns"] = seconds
        workers.call(_end, process=name)
    ours, theirs = times.values()
    row["ratio"] = median(b / a for a, b in zip(ours, theirs, strict=True))
    return row


def _begin(name: str, shape: Shape, attempt: Attempt) -> bool:
    """Make a contestant and take its first steps; whether there was memory for it."""
    device.start_peak()
    try:
        trainer = _CONTESTANTS[name](shape.model, shape.train(attempt))
        trainer.steps(WARM_UP)
    except device.OUT_OF_MEMORY:
        return False
    _kept["trainer"] = trainer
    return True


def _steps(count: int) -> float:
    return _kept["trainer"].steps(count)


def _figures(shape: Shape, attempt: Attempt, seconds: float) -> Row:
    return figures(shape, shape.model, attempt, seconds) | device.peak_memory()


def _end() -> None:
    _kept.clear()
    device.let_go()
