"""The pause of a growth, the memory that it takes, and a save."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from megatron_grow.benchmark.gpu import device
from megatron_grow.benchmark.gpu.runner import Row, Task, in_worker
from megatron_grow.benchmark.gpu.shapes import Shape, Sizes
from megatron_grow.benchmark.gpu.trainer import WARM_UP, Growing
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.save import save


def tasks(sizes: Sizes) -> list[Task]:
    """From no layer and from one, at two sizes."""
    return [
        Task("growth", f"{shape.name}, {layers} layers", seconds, in_worker(measure, shape, layers))
        for shape, seconds in ((sizes.llama, 30.0), (sizes.gpt2, 10.0))
        for layers in (1, 0)
    ]


def measure(shape: Shape, layers: int) -> Row:
    """Grow ``layers`` to all; after the growth from one, save."""
    attempt = shape.attempts[-1]
    trainer = Growing(shape.model, shape.train(attempt), layers)
    device.start_peak()
    small = trainer.steps(WARM_UP)
    row: Row = {
        "shape": shape.name,
        "before": layers,
        "after": shape.model.num_layers,
        **asdict(attempt),
        "small_step": small,
        "small_memory": device.peak_memory(),
    }
    device.let_go()
    device.start_peak()
    row["pause"] = trainer.grow()
    row["growth_memory"] = device.peak_memory()
    row["first_step"] = trainer.steps(1)
    device.start_peak()
    row["later_step"] = trainer.steps(2)
    row["step_memory"] = device.peak_memory()
    if layers:
        row |= _save(trainer)
    trainer.release()
    device.let_go()
    return row


def _save(trainer: Growing) -> Row:
    model = asdict(trainer.stages[1].model)
    record = Record(1, 1, 1, 1, 1, model, "bf16", asdict(trainer.config))
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        path = save(Path(directory), record, trainer.live.pieces(), trainer.live.tensors)
        seconds = time.perf_counter() - began
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"save": seconds, "save_bytes": size}
