"""The arithmetic of a BERT."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from megatron_grow.config.model import ModelConfig
from megatron_grow.model.bert.tensors import ATTENTION, POOLER, SENTENCE_HEAD
from megatron_grow.state.tensors import LogicalTensor


def layer_reads(tensors: Mapping[str, LogicalTensor], seq_length: int, hidden_length: int) -> int:
    """Parameters of the layers, each as often as it is applied to a sample.

    The first layer makes queries, keys and values of all tokens, whatever share a place behind it.

    Args:
        tensors: all that the model has, each layer its own.
        seq_length: tokens of a sample.
        hidden_length: places of a sample behind the first layer's queries.
    """
    layers = {key: tensor for key, tensor in tensors.items() if tensor.stacked}
    first = (t.shape for key, t in layers.items() if key.startswith(f"{ATTENTION}linear_qkv."))
    more = (seq_length - hidden_length) * sum(prod(shape) // shape[0] for shape in first)
    return hidden_length * sum(prod(tensor.shape) for tensor in layers.values()) + more


def model_flops_per_sample(
    model: ModelConfig,
    tensors: Mapping[str, LogicalTensor],
    seq_length: int,
    *,
    hidden_length: int,
    masked: int,
) -> int:
    """Arithmetic that training on one sample needs, counted as a GPT's (Chowdhery et al. 2022).

    Six operations for each entry of each matrix that multiplies activations, as often as it does: a
    layer's for every place, the head of masked tokens for these alone, that of sentences once.

    Args:
        model: the shape.
        tensors: all that it has.
        seq_length: tokens of a sample.
        hidden_length: as in :func:`layer_reads`.
        masked: tokens that the head reads.
    """
    matrices = {key: tensor for key, tensor in tensors.items() if tensor.is_matrix}
    layers = layer_reads(matrices, seq_length, hidden_length)
    head = masked * model.hidden_size * (model.hidden_size + model.vocabulary)
    sentence = sum(
        prod(tensor.shape)
        for key, tensor in matrices.items()
        if key.startswith((POOLER, SENTENCE_HEAD))
    )
    # The queries of the first layer are those of places, its keys those of all tokens.
    pairs = hidden_length * (seq_length + (model.num_layers - 1) * hidden_length)
    attention = 12 * model.num_attention_heads * model.head_dim * pairs if model.num_layers else 0
    return 6 * (layers + head + sentence) + attention
