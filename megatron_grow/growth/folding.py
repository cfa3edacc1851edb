"""Factors in the function of a model that change at a growth, folded into its weights.

A model multiplies its embeddings, its residual branches and the scores of its attention, and
divides its logits (:attr:`.ModelConfig.multipliers`). Where a target's factors are others than its
source's, what is drawn from the source makes up for it: the function stays, whatever operators do
besides, and gradients change the other way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_grow.config.model import ModelConfig
from megatron_grow.optim.roles import role
from megatron_grow.state.axes import QKV_HEAD, Role
from megatron_grow.state.maps import TensorMap
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class Folding:
    """What makes up for the factors of ``target``, in a growth from ``source``."""

    source: ModelConfig
    target: ModelConfig

    def weights(self, tensor_map: TensorMap) -> TensorMap:
        """How a tensor's weights are made."""
        return self._scaled(tensor_map, 1)

    def gradients(self, tensor_map: TensorMap) -> TensorMap:
        """How its gradient follows."""
        return self._scaled(tensor_map, -1)

    def in_words(self) -> Iterator[str]:
        """What is folded, for people."""
        for name in self.target.multipliers:
            if self._ratio(name) != 1.0:
                was, is_ = self.source.multipliers[name], self.target.multipliers[name]
                yield f"{name} {was:.6g} -> {is_:.6g}, for which weights make up"

    def caveats(self) -> Iterator[str]:
        """What cannot be folded: queries that are normalised forget their scale."""
        ratio = self._ratio("softmax_scale")
        if ratio != 1.0 and self.target.qk_layernorm and self.source.num_layers:
            yield "softmax_scale changes what attention computes under qk_layernorm"

    def _ratio(self, name: str) -> float:
        """What the source's factor is of the target's.

        Each is taken relative to what it would be if no field said otherwise: operators that change
        the size of heads know of the latter.
        """
        was, is_ = (m.multipliers[name] / m.plain_multipliers[name] for m in self._models)
        return was / is_

    @property
    def _models(self) -> tuple[ModelConfig, ModelConfig]:
        return self.source, self.target

    def _scaled(self, tensor_map: TensorMap, power: int) -> TensorMap:
        axis, factors = self._scale(tensor_map.target)
        if set(factors) == {1.0}:
            return tensor_map
        scale = axis, tuple(factor**power for factor in factors)
        return replace(
            tensor_map, terms=tuple(replace(term, scale=scale) for term in tensor_map.terms)
        )

    def _scale(self, tensor: LogicalTensor) -> tuple[int, tuple[float, ...]]:
        """An axis, and the factor of each of its entries."""
        names = [axis.name for axis in tensor.axes]
        if QKV_HEAD.name in names:
            heads = tensor.axis(QKV_HEAD.name)
            queries = 1.0 if self.target.qk_layernorm else self._ratio("softmax_scale")
            return heads, (*(queries,) * (tensor.shape[heads] - 2), 1.0, 1.0)
        shortest = tensor.shape.index(min(tensor.shape))
        return shortest, (self._factor(tensor),) * tensor.shape[shortest]

    def _factor(self, tensor: LogicalTensor) -> float:
        if tensor.ends_branch:
            return self._ratio("residual_multiplier")
        if role(tensor) == "embedding":
            return self._ratio("embedding_multiplier")
        logits = 1 / self._ratio("logits_scaling")
        if role(tensor) == "head":
            return logits
        # The head that is the embedding is multiplied with it: the norm before it makes up for all.
        if tensor.norm and not tensor.stacked and tensor.axes[-1].role is Role.CONSUMES:
            return logits / self._ratio("embedding_multiplier")
        return 1.0
