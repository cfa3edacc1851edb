"""What a growth is said to do, against published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.growth.forecast import forecast
from megatron_grow.growth.plan import growth

GPT2 = ModelConfig(vocab_size=50257, make_vocab_size_divisible_by=1, num_layers=12)
EMPTY = 39_383_808 + 2 * 768
"""Embeddings and the last norm of GPT-2 124M."""


@pytest.mark.parametrize(
    ("source", "operator", "fresh", "carried"),
    [
        (0, "random", 124_439_808 - EMPTY, 3 * EMPTY),
        (6, "copying_stack", 0, 3 * 124_439_808),
        # New layers are copies but for four zeroed outputs, and carry no moments.
        (
            6,
            "copying_zero",
            6 * (768 * 768 + 4 * 768 * 768 + 2 * 768),
            3 * EMPTY
            + 3 * (124_439_808 - EMPTY) // 2
            + (124_439_808 - EMPTY) // 2
            - 6 * (768 * 768 + 4 * 768 * 768 + 2 * 768),
        ),
    ],
)
def test_gpt2(source: int, operator: str, fresh: int, carried: int) -> None:
    plan = growth(
        replace(GPT2, num_layers=source),
        GPT2,
        GrowSection(depth=operator),
        target_depth=12,
        seed=1,
    )
    sizes = forecast(plan)
    assert sizes.parameters == 124_439_808
    assert sizes.fresh == fresh
    assert sizes.carried_bytes == 4 * carried


def test_block_diagonal_is_half_fresh_zeros() -> None:
    """Of a matrix that doubles both ways a half draws on nothing."""
    target = replace(
        GPT2, hidden_size=1536, num_attention_heads=24, ffn_hidden_size=4 * 1536, vocab_size=50257
    )
    plan = growth(GPT2, target, GrowSection(width="block_diagonal"), target_depth=12, seed=1)
    matrices = 12 * 12 * 1536**2
    assert forecast(plan).fresh == matrices // 2
