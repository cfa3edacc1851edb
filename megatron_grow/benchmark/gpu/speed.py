"""Tokens per second, share of the device's peak, and memory, at several depths of a shape."""

from __future__ import annotations

from dataclasses import asdict, replace

from megatron_grow.benchmark.contestants import OPTIMIZER
from megatron_grow.benchmark.gpu import device
from megatron_grow.benchmark.gpu.runner import Row, Task, in_worker
from megatron_grow.benchmark.gpu.shapes import Attempt, Shape, Sizes
from megatron_grow.benchmark.gpu.trainer import fitting
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.cost.flops import model_flops_per_token
from megatron_grow.cost.memory import estimate_memory
from megatron_grow.cost.parameters import count_parameters
from megatron_grow.optim.optimizers import optimizer_of

_SHARE_OF_STATE = 0.8
"""Of the device, for weights, gradients and moments of a part of the large model."""


def tasks(sizes: Sizes) -> list[Task]:
    """Every shape at full depth or what fits of it, then with no layer and with one."""
    found = []
    for shape in (sizes.llama, sizes.gpt2):
        for depth in (shape.model.num_layers, 0, 1):
            found.append(_task(shape, depth, sizes.repetitions))
    for depth in (0, 1, sizes.large.model.num_layers):
        found.append(_task(sizes.large, depth, sizes.repetitions))
    return found


def _task(shape: Shape, depth: int, repetitions: int) -> Task:
    whole = depth == shape.model.num_layers
    seconds = 20.0 if whole else 5.0
    name = f"{shape.name}, {depth} layers"
    return Task("speed", name, seconds, in_worker(measure, shape, depth, repetitions))


def measure(shape: Shape, depth: int, repetitions: int) -> Row:
    """Train ``shape`` with ``depth`` layers, or as many as there is memory for."""
    held = min(depth, layers_that_fit(shape.model, device.capacity()))
    model = replace(shape.model, num_layers=held)
    trainer, attempt = fitting(shape, model)
    seconds = trainer.steps(repetitions)
    trainer.release()
    row = figures(shape, model, attempt, seconds) | {"asked_layers": depth}
    row |= device.peak_memory()
    device.let_go()
    return row


def figures(shape: Shape, model: ModelConfig, attempt: Attempt, seconds: float) -> Row:
    """What follows from the seconds of a step."""
    length = model.max_position_embeddings
    tokens = attempt.micro_batch_size * length / seconds
    flops = model_flops_per_token(model, length)
    causal = model_flops_per_token(model, length, causal=True)
    peak = device.peak_flops()
    return {
        "shape": shape.name,
        "layers": model.num_layers,
        "parameters": count_parameters(model),
        "seq_length": length,
        **asdict(attempt),
        "seconds": seconds,
        "tokens_per_second": tokens,
        "flops_per_second": tokens * flops,
        "mfu": tokens * flops / peak if peak else None,
        "mfu_causal": tokens * causal / peak if peak else None,
    }


def layers_that_fit(model: ModelConfig, capacity: int) -> int:
    """How many layers of ``model`` a device with ``capacity`` bytes can train."""

    def state(layers: int) -> int:
        part = replace(model, num_layers=layers)
        rule = optimizer_of(OPTIMIZER)
        found = estimate_memory(part, ParallelConfig(), 1, precision="bf16", optimizer=rule)
        return found.total

    outside, layer = state(0), state(1) - state(0)
    return max(0, min(model.num_layers, int((_SHARE_OF_STATE * capacity - outside) // layer)))


def extrapolated(rows: list[Row], whole: ModelConfig) -> Row | None:
    """The whole model from two depths of it; None where two are not known.

    Time and memory of a stack are those of no layers and a slope for each layer.
    """
    depths = sorted((row for row in rows if "seconds" in row), key=lambda row: row["layers"])
    if len({row["layers"] for row in depths}) < 2:
        return None
    few, many = depths[0], depths[-1]

    def per_token(row: Row) -> float:
        return 1 / row["tokens_per_second"]

    layers = many["layers"] - few["layers"]
    slope = (per_token(many) - per_token(few)) / layers
    tokens = 1 / (per_token(few) + slope * (whole.num_layers - few["layers"]))
    peak = many["flops_per_second"] / many["mfu"] if many["mfu"] else None
    flops = tokens * model_flops_per_token(whole, whole.max_position_embeddings)
    return {
        "shape": many["shape"],
        "layers": whole.num_layers,
        "parameters": count_parameters(whole),
        "seconds_per_layer_and_token": slope,
        "tokens_per_second": tokens,
        "flops_per_second": flops,
        "mfu": flops / peak if peak else None,
    }
