"""A deep linear network, of which theory knows every gradient; a run file names its import path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.model.architecture import Loss
from megatron_grow.model.gpt.architecture import GPT
from megatron_grow.state.axes import HIDDEN, LAYER, Axis, AxisRule, Role
from megatron_grow.state.tensors import LogicalTensor, Normal

COLUMN = AxisRule("column")
KEY = "network.layers.weight"
"""(layer, row, column)."""


@dataclass(frozen=True)
class DeepLinear(GPT):
    """``W_L ... W_1 x``, trained to be ``Phi x``."""

    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        """One, of all layers."""
        layer = Axis(LAYER, model.num_layers, Role.INDEX)
        row = Axis(HIDDEN, model.hidden_size, Role.PRODUCES)
        column = Axis(COLUMN, model.hidden_size, Role.CONSUMES)
        return {KEY: LogicalTensor(KEY, (layer, row, column), (1, 1, 1), Normal(1.0))}

    def build(
        self, model: ModelConfig, parallel: ParallelConfig, train: TrainSection
    ) -> list[torch.nn.Module]:
        """All layers, on one pipeline stage."""
        from megatron_grow.model.engine_config import transformer_config
        from tests.architectures.deep_linear_module import Layers

        return [Layers(transformer_config(model, parallel, train))]

    def forward_step(
        self, chunk: torch.nn.Module, batch: Mapping[str, torch.Tensor] | None
    ) -> tuple[Any, Loss]:
        """Half the squared distance from the targets; ``inputs`` and ``targets`` are of columns."""
        assert batch is not None
        return chunk(batch["inputs"]), partial(_loss, batch["targets"])


def _loss(targets: torch.Tensor, output: torch.Tensor) -> dict[str, torch.Tensor]:
    distance = (output - targets).square().sum() / 2
    return {"loss": torch.stack([distance, torch.ones_like(distance)])}
