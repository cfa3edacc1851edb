"""The operator ``copying_inter``."""

from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.state.axis_maps import Gather


class CopyingInter(DepthOperator):
    """Repeat each layer of the source in place (interpolation, as in AKI-Pro, arXiv 2408.06567).

    Not function-preserving.
    """

    def layer_map(self, source: int, target: int) -> Gather:
        """w1 w2 -> w1 w1 w2 w2."""
        # In integers: int(i / (target / source)) is off by one for 14 -> 18 and others.
        return Gather(tuple(i * source // target for i in range(target)))
