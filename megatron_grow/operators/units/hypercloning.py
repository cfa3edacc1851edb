"""The operator ``hypercloning``."""

from dataclasses import dataclass
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.operators.expansion import Expansion, cyclic, even_shares
from megatron_grow.operators.units.base import UnitOperator


@dataclass(frozen=True)
class HyperCloning(UnitOperator):
    """Repeat all units a whole number of times; each copy gets an equal share.

    HyperCloning (Samragh et al. 2024, arXiv 2409.12903); the feed-forward tiling of CompoundGrow
    (arXiv 2010.12562). Function-preserving. Where the paper unties the head, here a tied one stays
    tied: the last norm shares out in its place.
    """

    name: ClassVar[str] = "hypercloning"
    whole_factor: ClassVar[bool] = True

    def expand(self, axis: str, source: int, target: int, model: ModelConfig) -> Expansion:
        """0 1 -> 0 1 0 1."""
        index = cyclic(source, target)
        return Expansion(index, share=even_shares(index))
