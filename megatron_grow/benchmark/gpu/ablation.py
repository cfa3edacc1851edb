"""What each of the run file's switches for faster kernels is worth: all, none, and all but one."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch

from megatron_grow.benchmark.gpu import device
from megatron_grow.benchmark.gpu.runner import Row, Task, in_worker
from megatron_grow.benchmark.gpu.shapes import Shape, Sizes
from megatron_grow.benchmark.gpu.speed import figures
from megatron_grow.benchmark.gpu.trainer import fitting
from megatron_grow.config.kernels import KernelsSection

_LAYERS = 4
"""Of the larger shape: its kernels, and a part of the time that they take."""
_DEFAULT = None
"""A switch that is on where it helps."""


def tasks(sizes: Sizes) -> list[Task]:
    """A few layers of the larger shape in every way, then the smaller one, whole and with one
    layer, with all, with none and with whole layers compiled."""
    names = [field.name for field in fields(KernelsSection)]
    llama = _with_layers(sizes.llama, min(_LAYERS, sizes.llama.model.num_layers))
    ways: dict[str, dict[str, Any]] = {
        "all": dict.fromkeys(names, _DEFAULT),
        "none": dict.fromkeys(names, False),
        # The compiler of CPU code takes longer than a test may.
        "whole layers": dict.fromkeys(names, _DEFAULT) | {"layers": torch.cuda.is_available()},
    }
    each = {f"without {name}": ways["all"] | {name: False} for name in names if name != "layers"}
    return [
        Task(
            "ablation",
            f"{shape.name}, {shape.model.num_layers} layers, {name}",
            8.0,
            in_worker(measure, shape, KernelsSection(**way), sizes.repetitions),
            second,
        )
        for shape, known, second in (
            (llama, ways | each, False),
            (sizes.gpt2, ways, True),
            (_with_layers(sizes.gpt2, 1), ways, True),
        )
        for name, way in known.items()
    ]


def _with_layers(shape: Shape, layers: int) -> Shape:
    return replace(shape, model=replace(shape.model, num_layers=layers))


def measure(shape: Shape, kernels: KernelsSection, repetitions: int) -> Row:
    """Train with these switches."""
    trainer, attempt = fitting(shape, shape.model, {"kernels": kernels})
    seconds = trainer.steps(repetitions)
    trainer.release()
    row = figures(shape, shape.model, attempt, seconds) | device.peak_memory()
    device.let_go()
    return row
