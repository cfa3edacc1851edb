"""An optimizer: ``optimizer: {optimizer: "extend.lion:Lion", options: {beta1: 0.95}}``."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from megatron_grow.inputs.ranges import ShareBelowOne
from megatron_grow.optim.base import Optimizer


@dataclass(frozen=True)
class Lion(Optimizer):
    """Every entry moves by the learning rate, along the sign of a momentum (arXiv 2302.06675)."""

    states: ClassVar = {"momentum": 1}
    shards: ClassVar = True

    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.99

    def build(self, groups: list[dict[str, Any]], dtype: torch.dtype) -> torch.optim.Optimizer:
        """As :meth:`.Optimizer.build`."""
        return LionRule(groups, {"lr": self.lr, "beta1": self.beta1, "beta2": self.beta2})


class LionRule(torch.optim.Optimizer):
    """The same, as torch has optimizers."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    momentum = self.state[param]["momentum"]
                    update = momentum.lerp(param.grad, 1 - group["beta1"]).sign_()
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(update, alpha=-group["lr"])
                    momentum.lerp_(param.grad, 1 - group["beta2"])
