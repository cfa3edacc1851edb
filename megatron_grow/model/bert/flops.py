"""The arithmetic of a BERT."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from megatron_grow.model.bert.tensors import ATTENTION
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
