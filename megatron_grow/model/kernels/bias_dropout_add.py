"""Bias, dropout and the residual sum in one kernel."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer


def fuse(module: torch.nn.Module) -> None:
    """Let a layer use megatron-core's compiled function; a sum alone is one kernel anyway."""
    if isinstance(module, TransformerLayer) and (
        module.config.add_bias_linear or module.config.hidden_dropout
    ):
        module.config.bias_dropout_fusion = True
