"""The operator ``unshare``."""

from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import shown
from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.state.axis_maps import Gather


class Unshare(DepthOperator):
    """Give layers that share their parameters parameters of their own, all of them or some.

    The second half of SWE (Yang et al. 2021, arXiv 2110.03848). Function-preserving, exactly: each
    layer begins as what it was. A shared gradient is the sum of those of its layers, so a layer
    begins with its part of the first moments, and the square of it of the second.
    """

    preserves_function: ClassVar[bool] = True
    keeps_depth: ClassVar[bool] = True

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """Layers of the target that are one must be one in the source."""
        super().check(source, target, where)
        before, after = source.unique_layer_of, target.unique_layer_of
        for layer, unique in enumerate(after):
            first = after.index(unique)
            if before[layer] != before[first]:
                raise UserError(
                    f"{where}: by model.layer_sharing={target.layer_sharing} layers {first} and "
                    f"{layer} are one, but they are two in the stage before "
                    f"({shown(source.layer_sharing)}); unshare only splits layers that are one"
                )

    def layer_map(self, source: int, target: int) -> Gather:
        """w1 w1 -> w1 w2."""
        return Gather(tuple(range(target)))
