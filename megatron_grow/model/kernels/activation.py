"""Bias and activation of a feed-forward network in one compiled function."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import MLP

from megatron_grow.model.kernels.compiling import compiled


def fuse(module: torch.nn.Module) -> None:
    """Let a feed-forward network of megatron-core's compute so.

    Its own fusions know SwiGLU and, under the name of GELU, the tanh that comes close to it.
    """
    if type(module) is not MLP:
        return
    config: TransformerConfig = module.config
    if not config.use_te_activation_func:
        module.forward = MethodType(_forward, module)


def _forward(
    mlp: MLP, hidden_states: torch.Tensor, per_token_scale: torch.Tensor | None = None, **more: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if per_token_scale is not None:  # an expert's
        return MLP.forward(mlp, hidden_states, per_token_scale, **more)
    x, bias = mlp.linear_fc1(hidden_states)
    return mlp.linear_fc2(_activated(x, bias, mlp.activation_func, mlp.config.gated_linear_unit))


@compiled
def _activated(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    function: Callable[[torch.Tensor], torch.Tensor],
    gated: bool,
) -> torch.Tensor:
    if bias is not None:
        x = x + bias
    if not gated:
        return function(x)
    gate, up = x.chunk(2, dim=-1)
    return function(gate) * up
