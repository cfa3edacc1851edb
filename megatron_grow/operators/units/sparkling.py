"""The operator ``sparkling``."""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.operators.expansion import Expansion
from megatron_grow.operators.indices import cyclic, padded
from megatron_grow.operators.units.base import UnitOperator


@dataclass(frozen=True)
class Sparkling(UnitOperator):
    """Copy or draw new units and rescale consumers so that their outputs keep their RMS.

    SPARKLING (arXiv 2602.02472), for growth in mid-training; with ``optimizer_state: carry_old``
    and a re-warm-up. It keeps statistics, not values: the function stays only where all units are
    copied as often, since the factor is then an even share.
    """

    copy: Literal["both", "none"] = "both"
    """Whether new units, and the weights that read them, are copies; or both are fresh."""

    def expand(self, axis: str, source: int, target: int, model: ModelConfig) -> Expansion:
        """Columns times the factor of :meth:`factor`."""
        index = padded(source, target) if self.copy == "none" else cyclic(source, target)
        return Expansion(index, share=(self.factor(source, target),) * target)

    def factor(self, source: int, target: int) -> float:
        """On the weights of who consumes the axis; c is its relative growth."""
        c = target / source - 1
        if self.copy != "both":
            return 1 / sqrt(1 + c)
        return 1 / sqrt(1 + 3 * c) if c <= 1 else 1 / (1 + c)

    def caveat_along(self, axis: str, source: int, target: int, model: ModelConfig) -> str | None:
        """By design, unless shares are even."""
        if self.copy == "both" and target % source == 0:
            return None
        return "outputs keep their RMS, not their values"
