"""What a tensor is to an optimizer, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.algorithms.fused_rows import row_pattern
from megatron_grow.optim.roles import fan_in, fan_out, role, roles
from megatron_grow.state.boxes import full
from tests.optim.toy import gpt

LAYER = "decoder.layers."
BERT = logical_tensors(replace(gpt(), architecture="bert", activation="gelu"))
UNTIED = logical_tensors(gpt(share_embeddings_and_output_weights=False))
TIED = logical_tensors(gpt())
EXPECTED = {
    # Hidden 32; 4 heads of 8 in 2 groups; ffn 48, gated.
    "embedding.word_embeddings.weight": ("embedding", 1, 32),
    "embedding.position_embeddings.weight": ("embedding", 1, 32),
    "output_layer.weight": ("head", 32, 1),
    f"{LAYER}self_attention.linear_qkv.weight": ("matrix", 32, 4 * 8),
    f"{LAYER}self_attention.linear_proj.weight": ("matrix", 4 * 8, 32),
    f"{LAYER}mlp.linear_fc1.weight": ("matrix", 32, 48),
    f"{LAYER}mlp.linear_fc2.weight": ("matrix", 48, 32),
    f"{LAYER}self_attention.linear_qkv.bias": ("vector", 1, 4 * 8),
    f"{LAYER}mlp.linear_fc1.layer_norm_weight": ("vector", 1, 32),
    "decoder.final_layernorm.weight": ("vector", 1, 32),
    # Of a BERT: its heads have a matrix of hidden units before what classifies.
    "embedding.tokentype_embeddings.weight": ("embedding", 1, 32),
    "embedding.embedding_dropout.0.weight": ("vector", 1, 32),
    "lm_head.dense.weight": ("matrix", 32, 32),
    "output_layer.bias": ("vector", 1, 1),
    "pooler.dense.weight": ("matrix", 32, 32),
    "binary_head.weight": ("head", 32, 1),
    "binary_head.bias": ("vector", 1, 1),
}


@pytest.mark.parametrize("key", EXPECTED)
def test_roles_and_fans(key: str) -> None:
    tensor = (UNTIED if key in UNTIED else BERT)[key]
    assert (role(tensor), fan_in(tensor), fan_out(tensor)) == EXPECTED[key]


def test_a_norm_before_a_tied_head_has_the_fan_in_of_a_vector() -> None:
    """Though copies of units divide it among them, as they do columns of a matrix."""
    assert fan_in(BERT["lm_head.layer_norm.weight"]) == 1


def test_a_tied_embedding_is_the_head_as_well() -> None:
    words = "embedding.word_embeddings.weight"
    assert roles(TIED[words]) == {"embedding", "head"}
    assert roles(UNTIED[words]) == {"embedding"}
    assert roles(TIED["embedding.position_embeddings.weight"]) == {"embedding"}


def test_rows_of_fused_projections() -> None:
    """Of a whole tensor, and of the shards of two tensor-parallel ranks."""
    qkv = TIED[f"{LAYER}self_attention.linear_qkv.weight"]
    assert row_pattern(qkv, full(qkv.shape)) == (16, 8, 8)
    assert row_pattern(qkv, ((0, 1), (1, 2), (0, 4), (0, 8), (0, 32))) == (16, 8, 8)
    gate = TIED[f"{LAYER}mlp.linear_fc1.weight"]
    assert row_pattern(gate, full(gate.shape)) == (48, 48)
    assert row_pattern(gate, ((0, 1), (0, 2), (24, 48), (0, 32))) == (24, 24)
    assert row_pattern(TIED[f"{LAYER}mlp.linear_fc2.weight"], ((0, 1), (0, 32), (0, 48))) is None
