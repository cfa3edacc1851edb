"""The operator ``fpi``."""

from dataclasses import dataclass
from typing import Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.ranges import Seed
from megatron_grow.operators.expansion import Expansion
from megatron_grow.operators.indices import cyclic, even_shares, random_map
from megatron_grow.operators.units.base import UnitOperator


@dataclass(frozen=True)
class Fpi(UnitOperator):
    """Duplicate units; whoever consumes copies divides its weights among them.

    Net2Net (Chen et al. 2015, arXiv 1511.05641) and the function-preserving initialisation of
    bert2BERT (arXiv 2110.07143). Exact along heads and feed-forward units with any map. Along the
    hidden size norms see other statistics unless every unit has the same number of copies.
    """

    map: Literal["random", "cyclic"] = "random"
    """Copy random units (Net2Net), or all in turn."""
    seed: Seed = 0
    """Decides a random map."""

    def expand(self, axis: str, source: int, target: int, model: ModelConfig) -> Expansion:
        """The source in order, then copies."""
        cycle = self.map == "cyclic"
        index = cyclic(source, target) if cycle else random_map(source, target, self.seed)
        return Expansion(index, share=even_shares(index))

    def caveat_along(self, axis: str, source: int, target: int, model: ModelConfig) -> str | None:
        """Uneven copies change a norm's statistics."""
        if axis != "hidden" or (self.map == "cyclic" and target % source == 0):
            return None
        return "some hidden units get more copies than others, which changes the norms' statistics"
