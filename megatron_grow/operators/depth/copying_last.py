"""The operator ``copying_last``."""

from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.state.axis_maps import Gather


class CopyingLast(DepthOperator):
    """Keep the source's layers and repeat the last one on top.

    Not function-preserving; clearly worse than the other copies in arXiv 2511.04981.
    """

    def layer_map(self, source: int, target: int) -> Gather:
        """w1 w2 -> w1 w2 w2 w2."""
        return Gather(tuple(min(i, source - 1) for i in range(target)))
