"""Adam with decoupled weight decay (AdamW), as Megatron-LM has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_grow.inputs.ranges import Positive, ShareBelowOne
from megatron_grow.optim.base import Optimizer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Adam(Optimizer):
    """All tensors under AdamW."""

    states: ClassVar = {"exp_avg": 1, "exp_avg_sq": 2}
    counts_updates: ClassVar = True
    shards: ClassVar = True

    adam_beta1: ShareBelowOne
    adam_beta2: ShareBelowOne
    adam_eps: Positive

    @property
    def epsilon(self) -> float:
        """Added to the root of the second moment."""
        return self.adam_eps

    def build(self, groups: list[dict[str, Any]], dtype: torch.dtype) -> torch.optim.Optimizer:
        """Transformer Engine's or Apex's, where megatron-core finds them, else torch's."""
        from megatron.core import optimizer

        betas = (self.adam_beta1, self.adam_beta2)
        if optimizer.USING_PYTORCH_OPTIMIZER:
            # Fused: several times faster than torch's loop, on CPU too.
            return optimizer.Adam(groups, self.lr, betas, self.adam_eps, fused=True)
        groups = [{**group, "step": 0} for group in groups]  # they count by group
        return optimizer.Adam(groups, self.lr, betas=betas, eps=self.adam_eps, adam_w_mode=True)

    def megatron_lm_group(self, step: int) -> dict[str, Any]:
        """Fields of Transformer Engine's and Apex's Adam, and of torch's."""
        return {
            "betas": (self.adam_beta1, self.adam_beta2),
            "eps": self.adam_eps,
            "step": step,
            "bias_correction": True,
            "amsgrad": False,
            "maximize": False,
            "foreach": None,
            "capturable": False,
            "differentiable": False,
            "fused": None,
            "decoupled_weight_decay": True,
        }
