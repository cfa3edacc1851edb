"""SGD with momentum, as torch and Megatron-LM have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_grow.inputs.ranges import ShareBelowOne
from megatron_grow.optim.base import Optimizer
from megatron_grow.optim.roles import fan_in
from megatron_grow.state.tensors import LogicalTensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SGD(Optimizer):
    """All tensors under SGD. Weight decay is *not* decoupled: it is added to the gradient."""

    states: ClassVar = {"momentum_buffer": 1}

    sgd_momentum: ShareBelowOne

    def response(self, tensor: LogicalTensor, gradient: float) -> float:
        """Entries move as their gradients are."""
        return gradient * fan_in(tensor)

    def build(self, groups: list[dict[str, Any]], dtype: torch.dtype) -> torch.optim.Optimizer:
        """Transformer Engine's or Apex's, where megatron-core finds them, else torch's."""
        from megatron.core import optimizer

        return optimizer.SGD(groups, self.lr, momentum=self.sgd_momentum)
