"""Muon for matrices, normalised SGD for all else, at one rate and with one momentum."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_grow.inputs.ranges import ShareBelowOne
from megatron_grow.optim.base import Optimizer
from megatron_grow.optim.muon import MuonRule
from megatron_grow.optim.roles import fan_in, role
from megatron_grow.state.tensors import LogicalTensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NormalisedSGD(Optimizer):
    """Every tensor moves by exactly the learning rate."""

    states: ClassVar = {"momentum_buffer": 1}

    muon_momentum: ShareBelowOne

    def response(self, tensor: LogicalTensor, gradient: float) -> float:
        """The root mean square of entries is 1 / sqrt(number), that of a layer's."""
        entries = prod(axis.size for axis in tensor.axes if not axis.rule.stacks)
        return fan_in(tensor) / sqrt(entries)

    def build(self, groups: list[dict[str, Any]], dtype: torch.dtype) -> torch.optim.Optimizer:
        """Ours, over the ranks that share tensors."""
        from megatron.core import parallel_state

        from megatron_grow.optim.algorithms.nsgd import NSGD

        group = parallel_state.get_tensor_model_parallel_group()
        return NSGD(groups, lr=self.lr, momentum=self.muon_momentum, tp_group=group)


@dataclass(frozen=True)
class MuonNSGD(MuonRule):
    """Embeddings and head are matrices too, unless ``muon_embeddings`` is false."""

    muon_embeddings: bool

    def rule(self, tensor: LogicalTensor) -> Optimizer:
        """Itself for matrices."""
        matrix = role(tensor) == "matrix" or (tensor.is_matrix and self.muon_embeddings)
        return self if matrix else NormalisedSGD(self.lr, self.muon_momentum)
