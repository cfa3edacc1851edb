"""A transformer layer whose output is shorter than its input: tokens share places."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core.tensor_parallel import reduce_scatter_to_sequence_parallel_region
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_grow.model.layers.attention import ScaledDotProductAttention


def average(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The mean of the tokens of each place; 0 where a place holds none.

    Args:
        x: (tokens, batch, ...).
        places: (batch, places, tokens) bool, which tokens each place holds.

    Returns:
        (places, batch, ...).
    """
    return _shares(x, places, places.sum(2, keepdim=True))


def _shares(x: torch.Tensor, places: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """As :func:`average`, of those tokens that ``x`` has; counts are (batch, places, 1)."""
    sums = places.to(x.dtype) @ x.transpose(0, 1).flatten(2)
    shares = sums / counts.clamp(min=1).to(x.dtype)
    return shares.transpose(0, 1).unflatten(2, x.shape[2:])


class PooledQueryAttention(ScaledDotProductAttention):
    """Attention of places to tokens: the query of a place is the mean of its tokens' queries."""

    def reads(
        self, query: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the parent's, where ``attention_mask`` is the places: (places, batch, ...) queries."""
        assert attention_mask is not None, "the places"
        padding = ~attention_mask.any(1)
        return super().reads(average(query, attention_mask), padding[:, None, None])


class PoolingLayer(TransformerLayer):
    """A layer from tokens to places: its queries and its residual stream are averaged.

    Keys and values are those of all tokens. Its ``context_mask`` is the places, (batch, places,
    tokens) bool; under sequence parallelism both lengths are multiples of the ranks.
    """

    def _forward_attention(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        **unused: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert context_mask is not None, "the places"
        attended = self.self_attention(
            self.input_layernorm(hidden_states), attention_mask=context_mask
        )
        add = self.self_attn_bda(self.training, self.config.bias_dropout_fusion)
        return add(attended, self._residual(hidden_states, context_mask), self.hidden_dropout), None

    def _residual(self, hidden_states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        if not self.config.sequence_parallel:
            return average(hidden_states, places)
        tokens = len(hidden_states)
        here = places.narrow(2, self.tp_group.rank() * tokens, tokens)
        shares = _shares(hidden_states, here, places.sum(2, keepdim=True))
        return reduce_scatter_to_sequence_parallel_region(shares, self.tp_group)


def pooling(layer: ModuleSpec) -> ModuleSpec:
    """A layer's specification, as that of a :class:`PoolingLayer`."""
    attention = layer.submodules.self_attention
    parts = replace(attention.submodules, core_attention=PooledQueryAttention)
    submodules = replace(layer.submodules, self_attention=replace(attention, submodules=parts))
    return replace(layer, module=PoolingLayer, submodules=submodules)
