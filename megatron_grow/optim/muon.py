"""Muon for matrices, AdamW for embeddings, head and vectors."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_grow.inputs.ranges import Count, Positive, ShareBelowOne
from megatron_grow.optim.adam import Adam
from megatron_grow.optim.base import Optimizer
from megatron_grow.optim.roles import fan_in, fan_out, role
from megatron_grow.state.tensors import LogicalTensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MuonRule(Optimizer):
    """Matrices under Muon; Newton-Schulz runs in the type of the model's weights."""

    states: ClassVar = {"momentum_buffer": 1}

    muon_momentum: ShareBelowOne
    muon_use_nesterov: bool
    muon_num_ns_steps: Count
    muon_scale_mode: str

    def response(self, tensor: LogicalTensor, gradient: float) -> float:
        """Singular values of its update are all the same: what the scale says."""
        from megatron_grow.optim.algorithms.muon import SCALES

        of = role(tensor)
        rows, columns = tensor.checkpoint_shape[-2:]
        if of == "matrix":  # of which several may be fused
            rows, columns = fan_out(tensor), fan_in(tensor)
        scale = SCALES[self.muon_scale_mode](rows, columns)
        if of == "embedding":  # of which single rows are read
            return scale / sqrt(max(rows, columns))
        return scale * sqrt(columns / rows)

    def build(self, groups: list[dict[str, Any]], dtype: torch.dtype) -> torch.optim.Optimizer:
        """Ours, over the ranks that share matrices and those that have copies of them."""
        from megatron.core import parallel_state

        from megatron_grow.optim.algorithms.muon import Muon

        return Muon(
            groups,
            lr=self.peak,
            momentum=self.muon_momentum,
            nesterov=self.muon_use_nesterov,
            num_ns_steps=self.muon_num_ns_steps,
            scale_mode=self.muon_scale_mode,
            dtype=dtype,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            dp_group=parallel_state.get_data_parallel_group(with_context_parallel=True),
        )


@dataclass(frozen=True)
class MuonAdam(MuonRule):
    """Matrices at ``muon_lr``, all else under AdamW at ``lr``."""

    muon_lr: Positive | None
    adam_beta1: ShareBelowOne
    adam_beta2: ShareBelowOne
    adam_eps: Positive

    @property
    def peak(self) -> float:
        """``muon_lr``, where it is given."""
        return self.lr if self.muon_lr is None else self.muon_lr

    def rule(self, tensor: LogicalTensor) -> Optimizer:
        """Itself for matrices."""
        if role(tensor) == "matrix":
            return self
        return Adam(self.lr, self.adam_beta1, self.adam_beta2, self.adam_eps)
