"""An optimizer of an outsider's whose state carries the square of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from megatron_grow.inputs.ranges import Positive, ShareBelowOne
from megatron_grow.optim.base import Optimizer


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """torch's, which counts its updates and has an epsilon."""

    states: ClassVar = {"square_avg": 2}
    counts_updates: ClassVar = True

    alpha: ShareBelowOne = 0.9
    eps: Positive = 1e-8

    @property
    def epsilon(self) -> float:
        return self.eps

    def build(self, groups: list[dict[str, Any]], dtype: torch.dtype) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(groups, self.lr, self.alpha, self.eps)
