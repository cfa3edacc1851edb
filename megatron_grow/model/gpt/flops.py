"""The arithmetic of a GPT."""

from __future__ import annotations

from math import prod

from megatron_grow.config.model import ModelConfig
from megatron_grow.state.tensors import LogicalTensor


def model_flops_per_token(
    model: ModelConfig, tensors: dict[str, LogicalTensor], seq_length: int, *, causal: bool
) -> int:
    """Arithmetic that training on one token needs.

    Six operations for each entry of each matrix that multiplies activations: those of the layers
    and the head, not the embedding look-ups, biases and norms; and for attention
    ``12 x num_layers x heads x head size x seq_length`` (Chowdhery et al. 2022, appendix B).

    Args:
        model: the shape.
        tensors: all that it has.
        seq_length: tokens that attend to each other.
        causal: count half of the attention square.
    """
    matrices = (t for t in tensors.values() if t.stacked and t.is_matrix)
    layers = sum(prod(tensor.shape) for tensor in matrices)
    head = model.vocabulary * model.hidden_size
    attention = 12 * model.num_layers * model.num_attention_heads * model.head_dim * seq_length
    return 6 * (layers + head) + (attention // 2 if causal else attention)
