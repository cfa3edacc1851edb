"""How many parameters a model has, from its shape alone."""

from __future__ import annotations

from math import prod
from typing import Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.state.axes import LogicalTensor, logical_tensors

Part = Literal["total", "blocks", "embedding", "positions", "final_norm", "head"]
"""``total`` is all of the others together; ``blocks`` the transformer layers."""

_PARTS: dict[str, Part] = {
    "embedding.word_embeddings.weight": "embedding",
    "embedding.position_embeddings.weight": "positions",
    "decoder.final_layernorm.weight": "final_norm",
    "decoder.final_layernorm.bias": "final_norm",
    "output_layer.weight": "head",
}


def part_of(tensor: LogicalTensor) -> Part:
    """The part of a model that a tensor belongs to."""
    return "blocks" if tensor.stacked else _PARTS[tensor.key]


def count_parameters(model: ModelConfig, *, part: Part = "total", biases: bool = True) -> int:
    """Exact number of parameters of ``model``, or of one part of it.

    Padding of the vocabulary is left out, and a tied head counts once (as the embedding).

    Args:
        model: the shape; ``vocab_size`` must be set.
        part: which tensors to count.
        biases: whether to count biases. The sizes that the literature gives for "GPT-2 without
            biases" leave out those of LayerNorm too, which Megatron-Core's LayerNorm always has.
    """
    return sum(
        prod(tensor.shape)
        for key, tensor in logical_tensors(model).items()
        if part in ("total", part_of(tensor)) and (biases or not key.endswith("bias"))
    )
