"""The operator ``copying_zero``."""

from typing import ClassVar

from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.state.axis_map import AxisMap
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.tensors import ZERO, LogicalTensor


class CopyingZero(DepthOperator):
    """Insert copies whose two output projections are zero, spread evenly among the originals.

    Function-preserving, exactly: a new layer adds nothing to the residual stream. The spread is
    that of LLaMA-Pro (Wu et al. 2024, arXiv 2401.02415): 32 -> 40 inserts at 4, 9, ..., 39 copies
    of layers 3, 7, ..., 31. At first only the zeroed projections receive gradient; the rest of a
    new layer begins to move one step later.
    """

    preserves_function: ClassVar[bool] = True

    def layer_map(self, source: int, target: int) -> Gather:
        """w1 w2 -> w1 w1 w2 w2, the second of each pair being the copy."""
        index: list[int] = []
        for layer in range(source):
            copies_so_far = (layer + 1) * (target - source) // source
            index += [layer] * (layer + 1 + copies_so_far - len(index))
        return Gather(tuple(index))

    def layer_weights(self, tensor: LogicalTensor, layers: AxisMap) -> AxisMap:
        """Copies, but zeros where a residual branch of a new layer ends."""
        return self.layer_gradients(tensor, layers) if tensor.ends_branch else layers

    def layer_gradients(self, tensor: LogicalTensor, layers: AxisMap) -> AxisMap:
        """Only originals: a branch that ends in zeros passes no gradient to the layer's inside."""
        return layers.first_only(fresh=ZERO)
