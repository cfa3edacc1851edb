"""Muon for the matrices of transformer layers, AdamW for embeddings, head and vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_grow.config.ranges import Count, Positive, ShareBelowOne
from megatron_grow.optim.adam import Adam
from megatron_grow.optim.base import Optimizer
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class Muon(Optimizer):
    """Matrices at ``muon_lr``, all others at ``lr``."""

    states: ClassVar = {"momentum_buffer": 1}

    muon_lr: Positive | None
    muon_momentum: ShareBelowOne
    muon_use_nesterov: bool
    muon_num_ns_steps: Count
    muon_scale_mode: str
    adam_beta1: ShareBelowOne
    adam_beta2: ShareBelowOne
    adam_eps: Positive

    @property
    def peak(self) -> float:
        """``muon_lr`` where it is given."""
        return self.lr if self.muon_lr is None else self.muon_lr

    def rule(self, tensor: LogicalTensor) -> Optimizer:
        """Itself for the matrices of layers."""
        if tensor.is_matrix and tensor.stacked:
            return self
        return Adam(self.lr, self.adam_beta1, self.adam_beta2, self.adam_eps)
