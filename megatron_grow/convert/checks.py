"""What is asked for and cannot be had."""

from __future__ import annotations

import torch

from megatron_grow.checkpoint.format import Format
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.pipeline import chunk_layers
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.kinds import MAIN_PARAM

_EXACT = {
    "fp32": (torch.float32, torch.bfloat16, torch.float16),
    "bf16": (torch.bfloat16,),
    "fp16": (torch.float16,),
}
"""The types whose values each precision holds."""


def check_precision(source: Reader, precision: str, allowed: bool) -> None:
    """Raise :class:`UserError` if weights would lose bits.

    Args:
        source: what is written.
        precision: what it is written in.
        allowed: that they may.
    """
    for key in source.tensors:
        dtype = source.dtype(key, MAIN_PARAM)
        if dtype not in _EXACT[precision] and not allowed:
            raise UserError(
                f"{source.path} stores {key} in {str(dtype).removeprefix('torch.')}; "
                f"{precision} would lose bits: pass --allow-rounding, or --precision fp32"
            )


def check_held(source: Reader, made: Format, precision: str) -> None:
    """Raise :class:`UserError` if the format ``made`` cannot hold ``source``, in ``precision``."""
    if precision not in made.precisions:
        raise UserError(
            f"--precision {precision} is not written in the {made.title} format; "
            f"{', '.join(made.precisions)} can be"
        )
    factors = source.record.model_config.factors
    if factors and not made.factors:
        name, value = next(iter(factors.items()))
        raise UserError(
            f"{source.path} has model.{name}={value}, a factor that the {made.title} format cannot "
            f"hold; fold it into the weights first, by a growth to a model with {name}: null"
        )
    if source.trains and not made.optimizer_state:
        raise UserError(
            f"{source.path} has optimizer state, which is not written in the {made.title} format; "
            "pass --weights-only to leave it behind"
        )


def check_layout(model: ModelConfig, layout: ParallelConfig) -> None:
    """Raise :class:`UserError` if ``model`` cannot be cut for ``layout``."""
    ranks = layout.tensor_model_parallel_size
    for name, size in layout.undivided(model):
        raise UserError(f"--tensor-model-parallel-size {ranks} does not divide {name} = {size}")
    stages = layout.pipeline_model_parallel_size
    if model.num_layers % stages:
        raise UserError(
            f"--pipeline-model-parallel-size {stages} does not divide num_layers = "
            f"{model.num_layers}"
        )
    chunk_layers(layout, model.num_layers, "the layout")
