"""SGD with momentum, as torch and Megatron-LM have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_grow.config.ranges import ShareBelowOne
from megatron_grow.optim.base import Optimizer


@dataclass(frozen=True)
class SGD(Optimizer):
    """All tensors under SGD. Weight decay is *not* decoupled: it is added to the gradient."""

    states: ClassVar = {"momentum_buffer": 1}

    sgd_momentum: ShareBelowOne
