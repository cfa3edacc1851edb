"""A training step after a growth against one of a run that had the shape from the start."""

from __future__ import annotations

from statistics import median

from megatron_grow.benchmark.contestants import Grown, MegatronGrow, train_section
from megatron_grow.benchmark.gang import Gang
from megatron_grow.benchmark.report import Report
from megatron_grow.benchmark.turns import ratio, take_turns
from megatron_grow.config.model import ModelConfig


def measure(
    model: ModelConfig, batch: int, precision: str, threads: int, repetitions: int
) -> Report:
    """Run both in turns."""
    train = train_section(model, batch, precision)
    with (
        Gang(Grown, model, train, threads=threads) as grown,
        Gang(MegatronGrow, model, train, threads=threads) as fixed,
    ):
        times = take_turns({"grown": grown, "fixed size": fixed}, repetitions)
    slowdown = ratio(times, "grown", "fixed size")
    rows = [[name, f"{median(seconds):.3f}"] for name, seconds in times.items()]
    return Report(
        f"A step after growth from 0 to {model.num_layers} layers ({precision}): "
        f"{slowdown:.3f} of a fixed-size run's",
        ["", "s/step"],
        rows,
        {"seconds": times, "ratio": slowdown},
    )
