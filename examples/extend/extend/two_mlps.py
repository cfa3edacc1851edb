"""The layer of :mod:`.second_mlp`."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules


class TwoMLPs(TransformerLayer):
    """megatron-core's layer with a second norm and MLP, of the same kinds as the first."""

    def __init__(
        self, config: TransformerConfig, submodules: TransformerLayerSubmodules, **more: Any
    ) -> None:
        super().__init__(config, submodules, **more)
        norm = {"hidden_size": config.hidden_size, "eps": config.layernorm_epsilon}
        self.second_norm = build_module(submodules.pre_mlp_layernorm, config=config, **norm)
        self.second_mlp = build_module(submodules.mlp, config=config, tp_group=self.tp_group)

    def _forward_mlp(self, hidden_states: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        hidden_states = super()._forward_mlp(hidden_states, *args, **more)
        add = self.mlp_bda(self.training, self.config.bias_dropout_fusion)
        output = self.second_mlp(self.second_norm(hidden_states))
        with self.bias_dropout_add_exec_handler():
            return add(output, hidden_states, self.hidden_dropout)
