"""What a step costs whose tokens share places, written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import DataSection
from megatron_grow.cost.flops import flops_per_sample, model_flops_per_token
from megatron_grow.model.architectures import logical_tensors
from tests.model.bert import pooled_reference

BERT = ModelConfig(
    architecture="bert",
    num_layers=3,
    hidden_size=8,
    num_attention_heads=2,
    ffn_hidden_size=24,
    vocab_size=50,
    max_position_embeddings=64,
)
QKV, PROJECTION, FEED_FORWARD, NORMS = 8 * 24 + 24, 8 * 8 + 8, 2 * 8 * 24 + 24 + 8, 2 * 16
LAYER = QKV + PROJECTION + FEED_FORWARD + NORMS


def _pooled(pool_size: int) -> ModelConfig:
    return replace(BERT, options={"pool_size": pool_size})


@pytest.mark.parametrize(("pool_size", "places"), [(1, 64), (2, 11 + 27), (4, 11 + 14)])
def test_layers_cost_for_places_and_the_first_projection_for_tokens(pool_size: int, places: int):
    """64 tokens of which 10 are masked: 1 + 10 places, and 53 tokens share the others."""
    reads = 64 * QKV + places * (3 * LAYER - QKV)
    assert flops_per_sample(_pooled(pool_size), "blocks", 64) == 6 * reads


@pytest.mark.parametrize(("pool_size", "places"), [(1, 64), (2, 11 + 27), (4, 11 + 14)])
def test_model_flops_equal_torchs_count(pool_size: int, places: int):
    """Of the network in plain PyTorch, which averages before it projects what a place asks."""
    model, masked = _pooled(pool_size), list(range(3, 23, 2))
    weights = {
        key: torch.ones(tensor.checkpoint_shape, requires_grad=True)
        for key, tensor in logical_tensors(model).items()
    }
    tokens = torch.zeros(64, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        found = pooled_reference.logits(model, weights, tokens, tokens, masked, pool_size)
        sum(each.sum() for each in found).backward()
    queries = 6 * (64 - places) * 8 * 8
    assert 64 * model_flops_per_token(model, 64) == counter.get_total_flops() + queries


def test_what_is_outside_of_layers_costs_for_tokens():
    """As without pooling."""
    outside = {
        k: flops_per_sample(_pooled(k), "total", 64) - flops_per_sample(_pooled(k), "blocks", 64)
        for k in (1, 4)
    }
    assert outside[1] == outside[4] > 0


def test_the_data_say_how_many_tokens_keep_a_place():
    """A quarter of 64 masked: 1 + 16 places, and 47 tokens share 24."""
    data = DataSection(options={"masked_lm_prob": 0.25})
    reads = 64 * QKV + (17 + 24) * (3 * LAYER - QKV)
    assert flops_per_sample(_pooled(2), "blocks", 64, data) == 6 * reads


def test_without_layers_nothing_is_pooled():
    """Nothing else is either."""
    empty = replace(_pooled(4), num_layers=0)
    assert flops_per_sample(empty, "blocks", 64) == 0
