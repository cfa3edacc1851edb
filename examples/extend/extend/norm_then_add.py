"""How layers of :mod:`.post_norms` add to the residual stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core.transformer import TransformerConfig
from torch.nn import functional

from megatron_grow.model.layers.norms import Norm


class NormThenAdd(torch.nn.Module):
    """``residual + dropout(norm(x + bias))``, in megatron-core's form of bias, dropout and add."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = Norm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool) -> Callable[..., torch.Tensor]:
        """What megatron-core calls with the branch's output (value, bias) and the residual."""

        def add(
            output: tuple[torch.Tensor, torch.Tensor | None], residual: torch.Tensor, dropout: float
        ) -> torch.Tensor:
            value, bias = output
            normed = self.norm(value if bias is None else value + bias)
            return residual + functional.dropout(normed, dropout, training)

        return add
