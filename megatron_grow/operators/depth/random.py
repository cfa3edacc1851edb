"""The operator ``random``."""

from typing import ClassVar

from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.state.axis_map import FRESH
from megatron_grow.state.axis_maps import Gather


class Random(DepthOperator):
    """Keep the source's layers at the bottom and put freshly initialised ones on top.

    Not function-preserving: the loss jumps, and recovers (Bu 2025, arXiv 2511.04981, table 1). The
    only trainable choice for a source without layers. New residual outputs get the init of the
    *target's* depth.
    """

    least_source_layers: ClassVar[int] = 0
    can_fade_in: ClassVar[bool] = True

    def layer_map(self, source: int, target: int) -> Gather:
        """w1 w2 -> w1 w2 * *."""
        return Gather((*range(source), *[FRESH] * (target - source)))
