"""Maximal update parametrization."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt

from megatron_grow.config.model import ModelConfig
from megatron_grow.optim.base import Optimizer
from megatron_grow.optim.multipliers import Multipliers
from megatron_grow.optim.roles import fan_in, role
from megatron_grow.parametrization.base import Parametrization
from megatron_grow.state.axes import Role
from megatron_grow.state.tensors import Init, LogicalTensor, Normal


@dataclass(frozen=True, kw_only=True)
class MuP(Parametrization):
    """In width, every layer changes what it gives by as much as in the base model (muP).

    Of hidden matrices the variance at init falls with their fan-in; logits are divided by the
    width, and scores multiplied by 1 / size of a head, all relative to the base. Rates follow from
    two things that are the same for all optimizers, how large gradients are and how far an update
    should reach, and one that each says of itself, how far its update does reach
    (:meth:`.Optimizer.response`). Under Adam hidden matrices get 1 / width; under SGD all but them
    get width; under Muon with ``unit_rms_norm`` nothing changes.

    Source: Yang et al. 2022, "Tensor Programs V" (arXiv 2203.03466), table 8; Dey et al. 2024,
    "The Practitioner's Guide to the Maximal Update Parameterization".
    """

    needs_base = True

    def factors(self, model: ModelConfig) -> dict[str, float]:
        """Of scores and logits."""
        at_base = self.base.multipliers
        return {
            "softmax_scale": at_base["softmax_scale"] * self.base.head_dim / model.head_dim,
            "logits_scaling": at_base["logits_scaling"]
            * (model.hidden_size / self.base.hidden_size),
        }

    def init(self, tensor: LogicalTensor, model: ModelConfig) -> Init:
        """Hidden matrices, by their fan-in."""
        if role(tensor) != "matrix":
            return tensor.init
        ratio = fan_in(self.base_tensors[tensor.key]) / fan_in(tensor)
        return scaled(self.init_at_base(tensor), sqrt(ratio))

    def init_at_base(self, tensor: LogicalTensor) -> Init:
        """Of a hidden matrix as narrow as the base's."""
        return tensor.init

    def multipliers(self, tensor: LogicalTensor, rule: Optimizer) -> Multipliers:
        """Rates by the response of each, epsilon by the size of gradients."""
        base = self.base_tensors[tensor.key]
        tensor = self.target_tensors.get(tensor.key, tensor)
        gradient, response = self.gradient(tensor), self.response(tensor)
        lr = response * rule.response(base, 1.0) / rule.response(tensor, gradient)
        return Multipliers(lr, self.decay(tensor, lr), gradient)

    def decay(self, tensor: LogicalTensor, lr: float) -> float:
        """The multiple of weight decay of a tensor whose rate has the multiple ``lr``."""
        return 1.0

    @property
    def depth(self) -> float:
        """Among how many times as many layers the change of the residual stream is shared."""
        return 1.0

    def response(self, tensor: LogicalTensor) -> float:
        """How far an update of a tensor should change what it gives, relative to the base.

        What it gives is multiplied or divided before it matters; that is made up for.
        """
        if tensor.part == "blocks":
            return 1 / (self._ratio("residual_multiplier") * self.depth)
        if role(tensor) == "embedding":
            return 1 / self._ratio("embedding_multiplier")
        return self._ratio("logits_scaling") if role(tensor) == "head" else 1.0

    def gradient(self, tensor: LogicalTensor) -> float:
        """How large the entries of a tensor's gradient are, relative to the base.

        Of a loss with respect to the residual stream they fall as the width grows.
        """
        if role(tensor) == "head":
            return 1 / self._ratio("logits_scaling")
        if all(axis.role is Role.INDEX for axis in tensor.axes):  # a bias of logits
            return 1.0
        stream = self.base.hidden_size / self.target.hidden_size
        if tensor.part == "blocks":
            return self._ratio("residual_multiplier") * stream
        if role(tensor) == "embedding":
            return self._ratio("embedding_multiplier") * stream
        return stream

    def _ratio(self, name: str) -> float:
        """A multiplier of the target by that of the base."""
        return self._factors[1][name] / self._factors[0][name]

    @cached_property
    def _factors(self) -> tuple[dict[str, float], dict[str, float]]:
        """All multipliers of the base and of the target."""
        base, target = (self.completed(model).multipliers for model in (self.base, self.target))
        return base, target


def scaled(init: Init, factor: float) -> Init:
    """The same with another standard deviation; constants stay."""
    return replace(init, std=init.std * factor) if isinstance(init, Normal) else init
