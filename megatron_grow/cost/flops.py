"""What training costs, in floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.stages import Stage
from megatron_grow.cost.parameters import count_parameters
from megatron_grow.model.architectures import architecture_of

Definition = Literal["total", "blocks"]
"""Which parameters cost: those of the whole model, embedding and head included, or those of the
transformer layers alone."""


def flops_per_token(model: ModelConfig, part: Definition) -> int:
    """Training cost of one token as ``6 N``, forward and backward (Kaplan et al. 2020).

    This is the measure of progressive training's published savings (Bu 2025), which depend on
    ``part``; metrics rows hold both, as ``flops_total`` and ``flops_block``.
    """
    return 6 * count_parameters(model, part=part)


def flops_at_step(stages: Sequence[Stage], step: int, part: Definition) -> int:
    """Cost of a run from its start to ``step``, as :func:`flops_per_token` counts it.

    A function of the stages alone, so that a resumed run needs nothing saved.

    Args:
        stages: the resolved stages of the run.
        step: global steps done.
        part: which parameters cost.
    """
    return sum(
        max(0, min(step, stage.last_step) - stage.first_step)
        * stage.batch.tokens
        * flops_per_token(stage.model, part)
        for stage in stages
    )


def model_flops_per_token(model: ModelConfig, seq_length: int, *, causal: bool = False) -> int:
    """Arithmetic that training on one token needs, for model FLOPs utilisation (MFU).

    Recomputation does not count.

    Args:
        model: the shape.
        seq_length: tokens that attend to each other.
        causal: count half of the attention square, what a causal kernel computes, instead of the
            published convention's whole.
    """
    return architecture_of(model).model_flops_per_token(model, seq_length, causal=causal)
