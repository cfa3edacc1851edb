"""The published table of cost ratios (Bu 2025; GPT-2 124M and 7B)."""

from __future__ import annotations

import pytest

from megatron_grow.cost.savings import flops_ratio
from tests.cost.gpt2 import gpt2

GPT2_124M, GPT2_7B = (12, 768), (60, 3072)

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
    stages = [(tau, gpt2(source_layers, hidden)), (1 - tau, gpt2(layers, hidden))]
    assert round(flops_ratio(stages, definition), 3) == printed


def test_unit_of_steps_does_not_matter():
    small, large = gpt2(0, 768), gpt2(12, 768)
    shares = flops_ratio([(0.5, small), (0.5, large)], "total")
    steps = flops_ratio([(300_000, small), (300_000, large)], "total")
    assert shares == pytest.approx(steps, rel=1e-12)


def test_a_run_without_growth_saves_nothing():
    assert flops_ratio([(10, gpt2(12, 768))], "total") == 1.0
