"""The attention core on torch's scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel


class ScaledDotProductAttention(torch.nn.Module):
    """Attention that never holds the whole attention matrix (flash kernels, CPU and GPU).

    Causal, or to all tokens but padding. Stands in for megatron-core's ``DotProductAttention`` in a
    layer specification.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **unused: object,
    ) -> None:
        super().__init__()
        if attn_mask_type not in (AttnMaskType.causal, AttnMaskType.padding):
            raise ValueError(f"only causal and padding masks are implemented, got {attn_mask_type}")
        self.causal = attn_mask_type is AttnMaskType.causal
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale
        self.backends: Sequence[SDPBackend] | None = None
        """Of torch, the first that can compute attention without a mask does; None: torch
        chooses."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **unused: object,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: (sequence, batch, query heads of this rank, head size).
            key: (sequence, batch, key/value heads of this rank, head size).
            value: as ``key``.
            attention_mask: (batch, 1, 1, sequence) bool, True where nothing is attended to; ignored
                by causal attention. A sequence of padding alone attends to all of it, for something
                that is a number.

        Returns:
            (sequence, batch, query heads x head size).
        """
        query, attended = self.reads(query, attention_mask)
        if self.training and self.dropout > 0.0:
            with tensor_parallel.get_cuda_rng_tracker().fork():
                context = self._attend(query, key, value, attended, self.dropout)
        else:
            context = self._attend(query, key, value, attended, 0.0)
        return context.permute(2, 0, 1, 3).flatten(2)

    def reads(
        self, query: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The queries that attend, and what they attend to: (batch, 1, 1, sequence) bool.

        None where a mask says nothing: they attend to all, or, if causal, to all before them.
        """
        if self.causal or attention_mask is None:
            return query, None
        return query, ~attention_mask | attention_mask.all(-1, keepdim=True)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attended: torch.Tensor | None,
        dropout: float,
    ) -> torch.Tensor:
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # (b, heads, s, d)
        with self._chosen_backends(attended):
            return functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=attended,
                is_causal=self.causal,
                dropout_p=dropout,
                scale=self.softmax_scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )

    def _chosen_backends(self, attended: torch.Tensor | None) -> AbstractContextManager:
        if self.backends is None or attended is not None:
            return nullcontext()
        return sdpa_kernel(list(self.backends), set_priority=True)
