"""Tokens per second against ``transformers``' GPT-2 of the same shape."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from megatron_grow.benchmark.contestants import MegatronGrow, Transformers, train_section
from megatron_grow.benchmark.gang import Gang
from megatron_grow.benchmark.report import Report
from megatron_grow.benchmark.turns import ratio, take_turns
from megatron_grow.config.model import ModelConfig

OURS = "megatron_grow"

# Label, type of weights and GELU of each rival. GPT-2's own "gelu_new" is the tanh form written out
# in PyTorch; "gelu_pytorch_tanh" is the same function as one kernel.
_RIVALS: dict[str, dict[str, tuple[Any, ...]]] = {
    "fp32": {
        "transformers": ("fp32", "gelu_new"),
        "transformers, fused GELU": ("fp32", "gelu_pytorch_tanh"),
    },
    "bf16": {
        "transformers, fp32 weights and autocast": ("fp32", "gelu_pytorch_tanh"),
        "transformers, all in bf16": ("bf16", "gelu_pytorch_tanh"),
    },
}


def measure(
    model: ModelConfig, batch: int, precisions: Sequence[str], threads: int, repetitions: int
) -> Report:
    """Run both in turns, in each precision."""
    rows: list[list[str]] = []
    values: dict[str, Any] = {}
    for precision in precisions:
        train = train_section(model, batch, precision)
        with ExitStack() as stack:
            gangs = {OURS: stack.enter_context(Gang(MegatronGrow, model, train, threads=threads))}
            for name, options in _RIVALS[precision].items():
                gang = Gang(Transformers, model, train, *options, threads=threads)
                gangs[name] = stack.enter_context(gang)
            times = take_turns(gangs, repetitions)
        values[precision] = {}
        for name, seconds in times.items():
            speed = batch * train.seq_length / median(seconds)
            lead = ratio(times, name, OURS)
            rows.append([precision, name, f"{median(seconds):.2f}", f"{speed:.0f}", f"{lead:.2f}x"])
            values[precision][name] = {"seconds": seconds, "tokens_per_second": speed, "lead": lead}
    return Report(
        f"Training throughput: {model.num_layers} layers, d={model.hidden_size}, "
        f"V={model.vocabulary}, T={model.max_position_embeddings}, batch {batch}, "
        f"{threads} thread(s)",
        ["precision", "", "s/step", "tokens/s", "megatron_grow's lead"],
        rows,
        values,
    )
