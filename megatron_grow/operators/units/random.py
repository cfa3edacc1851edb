"""The operator ``random`` for units."""

from dataclasses import dataclass
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.operators.expansion import Expansion
from megatron_grow.operators.indices import padded
from megatron_grow.operators.units.base import UnitOperator


@dataclass(frozen=True)
class UnitRandom(UnitOperator):
    """Add fresh units, rows and columns (G_random of arXiv 2405.15319).

    Not function-preserving at once.
    """

    can_fade_in: ClassVar[bool] = True

    def expand(self, axis: str, source: int, target: int, model: ModelConfig) -> Expansion:
        """0 1 -> 0 1 * *."""
        return Expansion(padded(source, target))

    def caveat_along(self, axis: str, source: int, target: int, model: ModelConfig) -> str | None:
        """New units compute something."""
        return "new units are random and take part at once"
