"""Muon for matrices, normalised SGD for all else, at one rate and with one momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_grow.config.ranges import Count, ShareBelowOne
from megatron_grow.optim.base import Optimizer
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class NSGD(Optimizer):
    """Normalised SGD: every tensor moves by exactly the learning rate."""

    states: ClassVar = {"momentum_buffer": 1}

    muon_momentum: ShareBelowOne


@dataclass(frozen=True)
class MuonNSGD(Optimizer):
    """Embeddings and head are matrices, unless ``muon_embeddings`` is false."""

    states: ClassVar = {"momentum_buffer": 1}

    muon_momentum: ShareBelowOne
    muon_use_nesterov: bool
    muon_num_ns_steps: Count
    muon_scale_mode: str
    muon_embeddings: bool

    def rule(self, tensor: LogicalTensor) -> Optimizer:
        """Itself for matrices."""
        if tensor.is_matrix and (tensor.stacked or self.muon_embeddings):
            return self
        return NSGD(self.lr, self.muon_momentum)
