"""Layer norm and RMS norm that need neither Transformer Engine nor Apex."""

from __future__ import annotations

import torch
from megatron.core.transformer import TransformerConfig
from torch.nn import functional


class Norm(torch.nn.Module):
    """The norm that ``config.normalization`` names, over the last axis.

    megatron-core's own torch norm refuses sequence parallelism; this one marks its parameters, so
    that megatron-core sums their gradients over the tensor-parallel ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.hidden_size = (hidden_size,)
        self.eps = eps
        self.weight = self._parameter(config, 1.0)
        self.bias = self._parameter(config, 0.0) if config.normalization == "LayerNorm" else None
        self.forward = self._layer_norm if self.bias is not None else self._rms_norm

    def _parameter(self, config: TransformerConfig, value: float) -> torch.nn.Parameter:
        device = torch.cuda.current_device()
        parameter = torch.nn.Parameter(torch.full(self.hidden_size, value, device=device))
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return parameter

    def _layer_norm(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.hidden_size, self.weight, self.bias, self.eps)

    def _rms_norm(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, self.hidden_size, self.weight, self.eps)
