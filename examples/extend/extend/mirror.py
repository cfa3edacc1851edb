"""A depth operator: ``grow: {depth: "extend.mirror:Mirror"}``."""

from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.state.axis_maps import Gather


class Mirror(DepthOperator):
    """Repeat the source's layers, back and forth. Not function-preserving."""

    def layer_map(self, source: int, target: int) -> Gather:
        """w1 w2 w3 -> w1 w2 w3 w3 w2 w1."""
        there_and_back = (*range(source), *reversed(range(source)))
        return Gather(tuple(there_and_back[i % (2 * source)] for i in range(target)))
