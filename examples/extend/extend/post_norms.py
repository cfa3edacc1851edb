"""An architecture: ``model: {architecture: "extend.post_norms:PostNorms"}``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.gpt.architecture import GPT
from megatron_grow.model.gpt.tensors import LAYERS
from megatron_grow.model.masks import MaskPoints
from megatron_grow.model.tensors import hidden, norm_tensors
from megatron_grow.state.tensors import LogicalTensor

if TYPE_CHECKING:
    import torch
    from megatron.core.transformer import ModuleSpec, TransformerConfig


@dataclass(frozen=True)
class PostNorms(GPT):
    """A GPT that normalises what attention and the MLP give before it is added (Gemma 2)."""

    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        """Those of a GPT, and the norms, with which a residual branch now ends."""
        if model.normalization != "RMSNorm":
            raise UserError(
                f"model.normalization={model.normalization}: post-norms must be RMSNorm, which "
                "passes on the zeros that an operator pads with"
            )
        tensors = {
            key: replace(tensor, ends_branch=False)
            for key, tensor in super().tensors(model, target_depth).items()
        }
        if model.num_layers:
            for end in ("self_attn_bda", "mlp_bda"):
                norm = norm_tensors(f"{LAYERS}{end}.norm.", hidden(model), model, ends_branch=True)
                tensors |= {tensor.key: tensor for tensor in norm}
        return tensors

    def layer_spec(
        self, model: ModelConfig, engine: TransformerConfig, train: TrainSection
    ) -> ModuleSpec:
        """A GPT's, with another way to add to the residual stream."""
        from megatron.core.transformer import ModuleSpec

        from extend.norm_then_add import NormThenAdd

        spec = super().layer_spec(model, engine, train)
        add = ModuleSpec(NormThenAdd, params={"config": engine})
        spec.submodules.self_attn_bda = spec.submodules.mlp_bda = add
        return spec

    def mask_points(self, chunk: torch.nn.Module) -> MaskPoints:
        """A GPT's, and the norms."""
        from megatron.core.utils import unwrap_model

        points = super().mask_points(chunk)
        for layer in unwrap_model(chunk).decoder.layers:
            for norm in (layer.self_attn_bda.norm, layer.mlp_bda.norm):
                points.norms.append(norm)
                points.branches.append((norm, layer.layer_number - 1))
        return points
