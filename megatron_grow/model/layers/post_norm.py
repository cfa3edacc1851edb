"""The original order of norms: after the sums of the residual stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import MegatronModule
from torch.nn import functional

from megatron_grow.model.layers.norms import Norm

Add = Callable[[tuple[torch.Tensor, torch.Tensor | None], torch.Tensor, float], torch.Tensor]
"""From what a branch gives, its bias apart, the residual stream and a share to drop, to the sum."""


class PostNormAdd(MegatronModule):
    """Adds a branch to the residual stream, and normalises the sum (Vaswani et al. 2017).

    Stands in for megatron-core's bias-dropout-add in a layer specification.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.norm = Norm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool) -> Add:
        """What adds; ``fused`` is megatron-core's, and makes no difference."""

        def add(
            branch: tuple[torch.Tensor, torch.Tensor | None], residual: torch.Tensor, drop: float
        ) -> torch.Tensor:
            output, bias = branch
            output = output if bias is None else output + bias
            return self.norm(residual + functional.dropout(output, drop, training))

        return add


def normalise_sums(layer: ModuleSpec, config: TransformerConfig) -> None:
    """Put the norms of a layer's specification after its sums."""
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = IdentityOp
    parts.self_attn_bda = parts.mlp_bda = ModuleSpec(PostNormAdd, params={"config": config})


def normalise_embeddings(embedding: MegatronModule, config: TransformerConfig) -> None:
    """Put a norm between megatron-core's embeddings and their dropout."""
    norm = Norm(config, config.hidden_size, config.layernorm_epsilon)
    embedding.embedding_dropout = torch.nn.Sequential(norm, embedding.embedding_dropout)
