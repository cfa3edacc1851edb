"""muP in depth as well: depth-muP and CompleteP."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.ranges import Share
from megatron_grow.parametrization.mup import MuP
from megatron_grow.state.tensors import Init, LogicalTensor


@dataclass(frozen=True, kw_only=True)
class CompleteP(MuP):
    """muP, and in depth all layers together change the stream by as much as in the base model.

    Residual branches are multiplied by depth^-exponent, where depth is relative to the base. From
    that follow, under Adam, depth^(exponent - 1) on the rates of all that is in layers, and
    depth^-exponent on their epsilon. Weight decay is such that, at the base's rate, a layer's
    weights shrink per step as its rate would have them. An exponent of 0.5 is depth-muP, 1
    CompleteP. Init does not depend on the depth.

    Source: Dey et al. 2025, "Don't be lazy: CompleteP enables compute-efficient deep transformers"
    (arXiv 2505.01618), table 1.
    """

    depth_exponent: Share

    @property
    def depth(self) -> float:
        """The target's, in times the base's."""
        return self._depth(self.target)

    def factors(self, model: ModelConfig) -> dict[str, float]:
        """Of muP, and of branches."""
        at_base, depth = self.base.multipliers["residual_multiplier"], self._depth(model)
        return {
            **super().factors(model),
            "residual_multiplier": at_base * depth**-self.depth_exponent,
        }

    def init_at_base(self, tensor: LogicalTensor) -> Init:
        """That of the base: the last matrices of branches know of its depth alone."""
        return self.base_tensors[tensor.key].init

    def _depth(self, model: ModelConfig) -> float:
        return model.num_layers / self.base.num_layers if self.base.num_layers else 1.0

    def decay(self, tensor: LogicalTensor, lr: float) -> float:
        """What keeps the product with the rate."""
        return (self.response(tensor) if tensor.part == "blocks" else 1.0) / lr
