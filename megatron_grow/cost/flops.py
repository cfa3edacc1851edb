"""What training costs, in floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import DataSection
from megatron_grow.config.stages import Stage
from megatron_grow.cost.parameters import count_parameters
from megatron_grow.model.architectures import architecture_of, data_options_of

Definition = Literal["total", "blocks"]
"""Which parameters cost: those of the whole model, embedding and head included, or those of the
transformer layers alone."""


def flops_per_sample(
    model: ModelConfig, part: Definition, seq_length: int, data: DataSection | None = None
) -> int:
    """Training cost of one sample as ``6 N`` for each token, forward and backward (Kaplan 2020).

    This is the measure of progressive training's published savings (Bu 2025), which depend on
    ``part``; metrics rows hold both, as ``flops_total`` and ``flops_block``. Where tokens share
    places in the layers, a layer costs for each place (:meth:`.Architecture.layer_reads`).

    Args:
        model: the shape.
        part: which parameters cost.
        seq_length: tokens of a sample.
        data: of the run, for what samples hold; that of a run file without one, if absent.
    """
    data_options = data_options_of(model, data or DataSection())
    reads = architecture_of(model).layer_reads(model, seq_length, data_options)
    if part == "total":
        outside = count_parameters(model) - count_parameters(model, part="blocks")
        reads += outside * seq_length
    return 6 * reads


def flops_at_step(
    stages: Sequence[Stage], step: int, part: Definition, data: DataSection | None = None
) -> int:
    """Cost of a run from its start to ``step``, as :func:`flops_per_sample` counts it.

    A function of the run file alone, so that a resumed run needs nothing saved.

    Args:
        stages: the resolved stages of the run.
        step: global steps done.
        part: which parameters cost.
        data: as in :func:`flops_per_sample`.
    """
    return sum(
        max(0, min(step, stage.last_step) - stage.first_step)
        * stage.batch.global_batch_size
        * flops_per_sample(stage.model, part, stage.batch.seq_length, data)
        for stage in stages
    )


def model_flops_per_token(
    model: ModelConfig,
    seq_length: int,
    *,
    causal: bool = False,
    data: DataSection | None = None,
) -> float:
    """Arithmetic that training on one token needs, for model FLOPs utilisation (MFU).

    Recomputation does not count.

    Args:
        model: the shape.
        seq_length: tokens that attend to each other.
        causal: count half of the attention square, what a causal kernel computes, instead of the
            published convention's whole.
        data: as in :func:`flops_per_sample`.
    """
    data_options = data_options_of(model, data or DataSection())
    return architecture_of(model).model_flops_per_token(
        model, seq_length, data_options, causal=causal
    )
