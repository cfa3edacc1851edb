"""How many parameters a model has, from its shape alone."""

from __future__ import annotations

from math import prod
from typing import Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.tensors import Part

Counted = Literal["total"] | Part
"""``total`` is all parts together."""


def count_parameters(model: ModelConfig, *, part: Counted = "total", biases: bool = True) -> int:
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
        if part in ("total", tensor.part) and (biases or not key.endswith("bias"))
    )
