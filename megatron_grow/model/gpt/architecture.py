"""GPT, as an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.model.architecture import Architecture, Loss
from megatron_grow.model.gpt import flops
from megatron_grow.model.gpt.huggingface.families import FAMILIES
from megatron_grow.model.gpt.tensors import gpt_tensors
from megatron_grow.model.huggingface import Family
from megatron_grow.model.masks import MaskPoints
from megatron_grow.state.tensors import LogicalTensor

if TYPE_CHECKING:
    import torch
    from megatron.core.transformer import ModuleSpec, TransformerConfig
    from torch.utils.data import Dataset

    from megatron_grow.config.run import RunConfig
    from megatron_grow.config.stages import Stage
    from megatron_grow.data.check import Split
    from megatron_grow.data.datasets import Datasets


@dataclass(frozen=True)
class GPT(Architecture):
    """Megatron-Core's GPT.

    One with other layers is a subclass, whose fields are its options, with :meth:`tensors`,
    :meth:`layer_spec` and :meth:`mask_points` of its own; where layers are not all alike,
    :meth:`layer_specs`.
    """

    cannot: ClassVar[Mapping[str, str]] = {
        "pool_size": "a causal model predicts each token, and tokens that share a place would see "
        "each other; stages[i].train.seq_length makes sequences shorter"
    }

    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        """As :func:`.tensors.gpt_tensors`."""
        return gpt_tensors(model, target_depth)

    def build(
        self, model: ModelConfig, parallel: ParallelConfig, train: TrainSection
    ) -> list[torch.nn.Module]:
        """As :func:`.build.build_gpt`, of layers as :meth:`layer_specs` says."""
        from megatron_grow.model.engine_config import transformer_config
        from megatron_grow.model.gpt.build import build_gpt

        engine = transformer_config(model, parallel, train, **self.engine_fields(model))
        return build_gpt(model, engine, train, self.layer_specs(model, engine, train))

    def engine_fields(self, model: ModelConfig) -> dict[str, Any]:
        """Fields of megatron-core's configuration that a GPT leaves at their defaults."""
        return {}

    def layer_specs(
        self, model: ModelConfig, engine: TransformerConfig, train: TrainSection
    ) -> list[ModuleSpec]:
        """megatron-core's specification of each layer of the model."""
        return [self.layer_spec(model, engine, train)] * model.num_layers

    def layer_spec(
        self, model: ModelConfig, engine: TransformerConfig, train: TrainSection
    ) -> ModuleSpec:
        """megatron-core's specification of a layer."""
        from megatron_grow.model.gpt.build import layer_spec

        return layer_spec(engine, train)

    def check_data(self, config: RunConfig, stages: list[Stage]) -> tuple[Split, Split | None]:
        """As :func:`.batch.check_data`."""
        from megatron_grow.model.gpt import batch

        return batch.check_data(config)

    def datasets(
        self, data: tuple[Split, Split | None], config: RunConfig, train_samples: int
    ) -> Datasets:
        """As :func:`.batch.datasets`."""
        from megatron_grow.model.gpt import batch

        return batch.datasets(data, config, train_samples)

    def cut(self, samples: Dataset, parts: int) -> Dataset:
        """Consecutive ones, which predict the same tokens, each once."""
        from megatron_grow.data.subsequences import Subsequences

        return Subsequences(samples, parts)

    def forward_step(
        self, chunk: torch.nn.Module, batch: Mapping[str, torch.Tensor] | None
    ) -> tuple[Any, Loss]:
        """As :func:`.batch.forward_step`."""
        from megatron_grow.model.gpt.batch import forward_step

        return forward_step(chunk, batch)

    def logits(self, chunk: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """As :func:`.batch.logits`."""
        from megatron_grow.model.gpt import batch

        return batch.logits(chunk, tokens)

    def example(self, tokens: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """As :func:`.batch.example`."""
        from megatron_grow.model.gpt import batch

        return batch.example(tokens)

    def mask_points(self, chunk: torch.nn.Module) -> MaskPoints:
        """As :func:`.masks.mask_points`."""
        from megatron_grow.model.gpt.masks import mask_points

        return mask_points(chunk)

    def model_flops_per_token(
        self, model: ModelConfig, seq_length: int, data_options: Any, *, causal: bool
    ) -> int:
        """As :func:`.flops.model_flops_per_token`."""
        tensors = self.tensors(model, None)
        return flops.model_flops_per_token(model, tensors, seq_length, causal=causal)

    def families(self) -> Mapping[str, Family]:
        """GPT-2, Llama and its kin."""
        return FAMILIES
