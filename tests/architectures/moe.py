"""A mixture of experts that a run file names by import path; it brings rows of the axis table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.inputs.ranges import Count, CountOrZero
from megatron_grow.model.gpt.architecture import GPT
from megatron_grow.model.gpt.tensors import MLP, gpt_tensors
from megatron_grow.state.axes import FFN, HIDDEN, LAYER, Axis, AxisRule, MeshDim, Role
from megatron_grow.state.tensors import LogicalTensor, Normal

if TYPE_CHECKING:
    from megatron.core.transformer import ModuleSpec, TransformerConfig

EXPERT = AxisRule("expert", partitioned_by=MeshDim.EXPERT, stacks=True)
ROUTED = AxisRule("expert")
"""The same experts in the router, which every rank has whole."""
EXPERT_FFN = replace(FFN, partitioned_by=MeshDim.EXPERT_TENSOR)


@dataclass(frozen=True)
class Experts(GPT):
    """A GPT whose feed-forward networks are experts, of which two read each token."""

    experts: Count = 4
    dense_layers: CountOrZero = 0
    """The first layers have a feed-forward network as any GPT."""

    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        """The two matrices of all experts, and the router."""
        tensors = gpt_tensors(model, target_depth)
        if not model.num_layers:
            return tensors
        dense, sparse = (range(model.num_layers)[part] for part in self._parts())
        for name in ("linear_fc1", "linear_fc2"):
            matrix = tensors[f"{MLP}{name}.weight"]
            layer, *others = (
                replace(axis, rule=EXPERT_FFN) if axis.rule == FFN else axis for axis in matrix.axes
            )
            key = f"{MLP}experts.experts.{name}.weight"
            axes = (layer, Axis(EXPERT, self.experts, Role.INDEX), *others)
            tensors[key] = replace(matrix, key=key, axes=axes, groups=(1, *matrix.groups))
        key = f"{MLP}router.weight"
        axes = (
            Axis(LAYER, model.num_layers, Role.INDEX),
            Axis(ROUTED, self.experts, Role.INDEX),
            Axis(HIDDEN, model.hidden_size, Role.CONSUMES),
        )
        tensors[key] = LogicalTensor(key, axes, (1, 1, 1), Normal(model.init_method_std))
        for key, tensor in list(tensors.items()):
            of_dense = key in (f"{MLP}linear_fc1.weight", f"{MLP}linear_fc2.weight")
            of_sparse = ".experts." in key or ".router." in key
            layers = dense if of_dense else sparse if of_sparse else range(model.num_layers)
            if not layers:
                del tensors[key]
            elif self.dense_layers and tensor.stacked:
                tensors[key] = _among(tensor, layers)
        return tensors

    def engine_fields(self, model: ModelConfig) -> dict[str, Any]:
        """Of experts."""
        fields: dict[str, Any] = {
            "num_moe_experts": self.experts,
            "moe_token_dispatcher_type": "allgather",
            "moe_router_load_balancing_type": "none",
        }
        if self.dense_layers:
            sparse = range(model.num_layers)[self._parts()[1]]
            fields["moe_layer_freq"] = [int(n in sparse) for n in range(model.num_layers)]
        return fields

    def layer_specs(
        self, model: ModelConfig, engine: TransformerConfig, train: TrainSection
    ) -> list[ModuleSpec]:
        """A GPT's layers, with experts in place of feed-forward networks where there are any."""
        from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec

        specs = [self.layer_spec(model, engine, train) for _ in range(model.num_layers)]
        for spec in specs[self._parts()[1]]:
            spec.submodules.mlp = get_mlp_module_spec(use_te=False, num_experts=self.experts)
        return specs

    def _parts(self) -> tuple[slice, slice]:
        """The dense layers, and those with experts."""
        return slice(0, self.dense_layers), slice(self.dense_layers, None)


def _among(tensor: LogicalTensor, layers: Sequence[int]) -> LogicalTensor:
    """``tensor``, which only some layers have."""
    first, *others = tensor.axes
    axes = (replace(first, size=len(layers)), *others)
    return replace(tensor, axes=axes, layers=tuple(layers))
