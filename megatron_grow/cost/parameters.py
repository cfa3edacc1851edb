"""How many parameters a model has, from its shape alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megatron_grow.config.model import ModelConfig

Part = Literal["total", "blocks", "embedding", "positions", "final_norm", "head"]
"""``total`` is all of the others together; ``blocks`` the transformer layers."""


@dataclass(frozen=True)
class Parameter:
    """One tensor of the model, or one tensor of each layer."""

    part: Part
    numel: int
    """Entries, of one layer where ``part`` is ``blocks``."""
    layers: int = 1
    """How many layers have such a tensor."""
    is_bias: bool = False
    is_matrix: bool = False
    sharded: bool = False
    """Whether tensor parallelism cuts it; if not, each rank of the group holds it whole."""


def count_parameters(model: ModelConfig, *, part: Part = "total", biases: bool = True) -> int:
    """Exact number of parameters of ``model``, or of one part of it.

    The vocabulary counts padded, and a tied head counts once (as the embedding).

    Args:
        model: the shape; ``vocab_size`` must be set.
        part: which tensors to count.
        biases: whether to count biases. The sizes that the literature gives for "GPT-2 without
            biases" leave out those of LayerNorm too, which Megatron-Core's LayerNorm always has.
    """
    return sum(
        p.numel * p.layers
        for p in parameters(model)
        if part in ("total", p.part) and (biases or not p.is_bias)
    )


def parameters(model: ModelConfig) -> Iterator[Parameter]:
    """Every tensor of ``model``; those of the layers come once, with their number."""
    hidden = model.hidden_size
    yield Parameter("embedding", model.padded_vocab_size * hidden, is_matrix=True, sharded=True)
    if model.position_embedding_type == "learned_absolute":
        yield Parameter("positions", model.max_position_embeddings * hidden, is_matrix=True)
    yield from _layer(model)
    yield from _norm(model, "final_norm", hidden)
    if not model.share_embeddings_and_output_weights:
        yield Parameter("head", model.padded_vocab_size * hidden, is_matrix=True, sharded=True)


def _layer(model: ModelConfig) -> Iterator[Parameter]:
    hidden, layers = model.hidden_size, model.num_layers
    query_rows = model.num_attention_heads * model.head_dim
    qkv_rows = query_rows + 2 * model.query_groups * model.head_dim
    ffn_rows = model.ffn_size * (2 if model.gated else 1)
    qkv_bias = model.add_bias_linear or model.add_qkv_bias

    yield from _norm(model, "blocks", hidden, layers)  # before attention
    yield from _linear(hidden, qkv_rows, layers, bias=qkv_bias, column_parallel=True)
    if model.qk_layernorm:
        for _ in ("query", "key"):
            yield from _norm(model, "blocks", model.head_dim, layers)
    yield from _linear(query_rows, hidden, layers, bias=model.add_bias_linear)
    yield from _norm(model, "blocks", hidden, layers)  # before the feed-forward layer
    yield from _linear(hidden, ffn_rows, layers, bias=model.add_bias_linear, column_parallel=True)
    yield from _linear(model.ffn_size, hidden, layers, bias=model.add_bias_linear)


def _linear(
    inputs: int, outputs: int, layers: int, *, bias: bool, column_parallel: bool = False
) -> Iterator[Parameter]:
    yield Parameter("blocks", inputs * outputs, layers, is_matrix=True, sharded=True)
    if bias:  # a row-parallel output is summed over ranks, so its bias is not cut
        yield Parameter("blocks", outputs, layers, is_bias=True, sharded=column_parallel)


def _norm(model: ModelConfig, part: Part, size: int, layers: int = 1) -> Iterator[Parameter]:
    yield Parameter(part, size, layers)
    if model.normalization == "LayerNorm":
        yield Parameter(part, size, layers, is_bias=True)
