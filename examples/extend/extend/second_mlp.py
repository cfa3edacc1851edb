"""An architecture: ``model: {architecture: "extend.second_mlp:SecondMLP"}``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.model.gpt.architecture import GPT
from megatron_grow.model.gpt.tensors import LAYERS
from megatron_grow.model.masks import MaskPoints
from megatron_grow.model.probes import Probe
from megatron_grow.model.tensors import hidden, mlp_tensors, norm_tensors
from megatron_grow.state.tensors import LogicalTensor

if TYPE_CHECKING:
    import torch
    from megatron.core.transformer import ModuleSpec, TransformerConfig


@dataclass(frozen=True)
class SecondMLP(GPT):
    """A GPT whose layers have another norm and MLP behind the first."""

    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        """Those of a GPT, and the second norm and MLP."""
        tensors = super().tensors(model, target_depth)
        if not model.num_layers:
            return tensors
        second = [
            *norm_tensors(f"{LAYERS}second_norm.", hidden(model), model),
            *mlp_tensors(f"{LAYERS}second_mlp.", model, target_depth or model.num_layers),
        ]
        return tensors | {tensor.key: tensor for tensor in second}

    def layer_spec(
        self, model: ModelConfig, engine: TransformerConfig, train: TrainSection
    ) -> ModuleSpec:
        """A GPT's parts, in another layer."""
        from extend.two_mlps import TwoMLPs

        spec = super().layer_spec(model, engine, train)
        spec.module = TwoMLPs
        return spec

    def mask_points(self, chunk: torch.nn.Module) -> MaskPoints:
        """A GPT's, and those of the second norm and MLP."""
        from megatron.core.utils import unwrap_model

        points = super().mask_points(chunk)
        for layer in unwrap_model(chunk).decoder.layers:
            points.norms.append(layer.second_norm)
            points.inner.append(layer.second_mlp.linear_fc2)
            points.branches.append((layer.second_mlp.linear_fc2, layer.layer_number - 1))
        return points

    def probes(self, chunk: torch.nn.Module) -> Iterator[Probe]:
        """A GPT's, and what the second MLP adds."""
        from megatron.core.utils import unwrap_model

        from megatron_grow.model.layers.probes import branch

        yield from super().probes(chunk)
        for layer in unwrap_model(chunk).decoder.layers:
            number = layer.layer_number - 1
            yield Probe("activation", "second_mlp", number, layer.second_mlp, branch)
