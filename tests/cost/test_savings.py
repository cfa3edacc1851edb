"""The published table of cost ratios (Bu 2025; GPT-2 124M and 7B)."""

from __future__ import annotations

import pytest

from megatron_grow.config.batch import BatchShape
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.stages import Stage
from megatron_grow.cost.flops import flops_at_step
from tests.cost.gpt2 import gpt2

GPT2_124M, GPT2_7B = (12, 768), (60, 3072)

STEPS = 600_000

TABLE = [
    # target, source layers, tau, definition, ratio as printed
    (GPT2_7B, 0, 0.8, "total", 0.218),
    (GPT2_7B, 0, 0.8, "blocks", 0.200),
    (GPT2_7B, 0, 0.88, "total", 0.140),
    (GPT2_7B, 1, 0.8, "total", 0.231),
    (GPT2_7B, 1, 0.8, "blocks", 0.213),
    (GPT2_7B, 1, 0.88, "total", 0.154),
    (GPT2_124M, 0, 0.8, "total", 0.454),
    (GPT2_124M, 0, 0.8, "blocks", 0.200),
    (GPT2_124M, 0, 0.88, "total", 0.399),
    (GPT2_124M, 1, 0.8, "total", 0.499),
    (GPT2_124M, 1, 0.8, "blocks", 0.267),
    (GPT2_124M, 1, 0.88, "total", 0.449),
]


@pytest.mark.parametrize(("target", "source_layers", "tau", "definition", "printed"), TABLE)
def test_published_table(target, source_layers, tau, definition, printed):
    layers, hidden = target
    small, large = gpt2(source_layers, hidden), gpt2(layers, hidden)
    grown = [_stage(small, 0, round(STEPS * tau)), _stage(large, round(STEPS * tau), STEPS)]
    cost, full = (
        flops_at_step(run, STEPS, definition) for run in (grown, [_stage(large, 0, STEPS)])
    )
    assert round(cost / full, 3) == printed


def _stage(model, first, last):
    return Stage(
        index=0,
        first_step=first,
        last_step=last,
        model=model,
        parallel=ParallelConfig(),
        grow=None,
        batch=BatchShape(seq_length=1024, global_batch_size=512, micro_batch_size=1),
    )
