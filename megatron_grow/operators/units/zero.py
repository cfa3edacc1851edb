"""The operator ``zero`` for units."""

from dataclasses import dataclass
from math import sqrt

from megatron_grow.config.model import ModelConfig
from megatron_grow.operators.expansion import Expansion
from megatron_grow.operators.indices import padded
from megatron_grow.operators.units.base import UnitOperator, epsilon_caveat
from megatron_grow.state.tensors import ZERO


@dataclass(frozen=True)
class UnitZero(UnitOperator):
    """Add units that have no effect yet.

    New heads and feed-forward units are fresh, behind zero columns: function-preserving. New hidden
    units are zero, before fresh columns: under RMSNorm the gain times sqrt(d / D) preserves the
    function (G_zero of arXiv 2405.15319, appendix A; the epsilon must scale by d / D, too, the plan
    says to what), under LayerNorm the zeros move the mean.
    """

    def expand(self, axis: str, source: int, target: int, model: ModelConfig) -> Expansion:
        """0 1 -> 0 1 * *."""
        index = padded(source, target)
        if axis != "hidden":
            return Expansion(index, new_columns=ZERO)
        return Expansion(index, new_rows=ZERO, gain=sqrt(source / target))

    def caveat_along(self, axis: str, source: int, target: int, model: ModelConfig) -> str | None:
        """LayerNorm subtracts the mean."""
        if axis == "hidden" and model.normalization == "LayerNorm":
            return "zeros move the mean that LayerNorm subtracts; lemon pads with the mean"
        return None

    def caveat(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """Besides: the norms' epsilon."""
        if reason := super().caveat(source, target):
            return reason
        kept = source.hidden_size / target.hidden_size
        return epsilon_caveat(source, target, kept) if self.key == "width" else None
