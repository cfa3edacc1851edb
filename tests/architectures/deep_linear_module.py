"""The module of a deep linear network."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.enums import ModelType
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule

from tests.architectures.deep_linear import KEY


class Layers(MegatronModule):
    """Matrices, one for each layer."""

    model_type = ModelType.encoder_or_decoder

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        size = config.hidden_size, config.hidden_size
        self.layers = torch.nn.ParameterList(torch.zeros(size) for _ in range(config.num_layers))

    def set_input_tensor(self, _: Any) -> None:
        """There is no pipeline stage before this one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, size)."""
        for weight in self.layers:
            x = x @ weight.T
        return x

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, ShardedTensor]:
        """Stacked, as megatron-core has the layers of a transformer."""
        replica = (0, 0, parallel_state.get_data_parallel_rank())
        return {
            f"layers.{number}": ShardedTensor.from_rank_offsets(
                KEY, weight, (0, number, len(self.layers)), prepend_axis_num=1, replica_id=replica
            )
            for number, weight in enumerate(self.layers)
        }
