"""A mixture of experts that a run file names by import path; it brings rows of the axis table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.ranges import Count
from megatron_grow.config.sections import TrainSection
from megatron_grow.model.gpt.architecture import GPT
from megatron_grow.model.gpt.tensors import MLP, gpt_tensors
from megatron_grow.state.axes import FFN, HIDDEN, LAYER, Axis, AxisRule, MeshDim, Role
from megatron_grow.state.tensors import LogicalTensor, Normal

if TYPE_CHECKING:
    import torch
    from megatron.core.transformer import ModuleSpec, TransformerConfig

EXPERT = AxisRule("expert", sized_by="experts", partitioned_by=MeshDim.EXPERT, stacks=True)
ROUTED = AxisRule("expert", sized_by="experts")
"""The same experts in the router, which every rank has whole."""
EXPERT_FFN = replace(FFN, partitioned_by=MeshDim.EXPERT_TENSOR)


@dataclass(frozen=True)
class Experts(GPT):
    """A GPT whose feed-forward networks are experts, of which two read each token."""

    experts: Count = 4

    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        """The two matrices of all experts, and the router."""
        tensors = gpt_tensors(model, target_depth)
        if not model.num_layers:
            return tensors
        for name in ("linear_fc1", "linear_fc2"):
            dense = tensors.pop(f"{MLP}{name}.weight")
            layer, *others = (
                replace(axis, rule=EXPERT_FFN) if axis.rule == FFN else axis for axis in dense.axes
            )
            key = f"{MLP}experts.experts.{name}.weight"
            axes = (layer, Axis(EXPERT, self.experts, Role.INDEX), *others)
            tensors[key] = replace(dense, key=key, axes=axes, groups=(1, *dense.groups))
        key = f"{MLP}router.weight"
        axes = (
            Axis(LAYER, model.num_layers, Role.INDEX),
            Axis(ROUTED, self.experts, Role.INDEX),
            Axis(HIDDEN, model.hidden_size, Role.CONSUMES),
        )
        tensors[key] = LogicalTensor(key, axes, (1, 1, 1), Normal(model.init_method_std))
        return tensors

    def build(
        self, model: ModelConfig, parallel: ParallelConfig, train: TrainSection
    ) -> list[torch.nn.Module]:
        """As a GPT."""
        from megatron_grow.model.engine_config import transformer_config
        from megatron_grow.model.gpt.build import build_gpt

        engine = transformer_config(
            model,
            parallel,
            train,
            num_moe_experts=self.experts,
            moe_token_dispatcher_type="allgather",
            moe_router_load_balancing_type="none",
        )
        return build_gpt(model, engine, train, self.layer_spec(engine, train))

    def layer_spec(self, engine: TransformerConfig, train: TrainSection) -> ModuleSpec:
        """A GPT's layer with experts in place of its feed-forward network."""
        from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec

        spec = super().layer_spec(engine, train)
        spec.submodules.mlp = get_mlp_module_spec(use_te=False, num_experts=self.experts)
        return spec
