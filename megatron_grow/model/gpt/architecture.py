"""GPT, as an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.model.architecture import Architecture
from megatron_grow.model.gpt.huggingface.families import FAMILIES
from megatron_grow.model.gpt.tensors import gpt_tensors
from megatron_grow.model.huggingface import Family
from megatron_grow.state.tensors import LogicalTensor

if TYPE_CHECKING:
    import torch


class GPT(Architecture):
    """Megatron-Core's GPT."""

    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        """As :func:`.tensors.gpt_tensors`."""
        return gpt_tensors(model, target_depth)

    def build(
        self, model: ModelConfig, parallel: ParallelConfig, train: TrainSection
    ) -> list[torch.nn.Module]:
        """As :func:`.build.build_gpt`."""
        from megatron_grow.model.gpt.build import build_gpt

        return build_gpt(model, parallel, train)

    def families(self) -> Mapping[str, Family]:
        """GPT-2, Llama and its kin."""
        return FAMILIES
