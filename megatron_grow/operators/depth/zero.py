"""The operator ``zero``."""

from dataclasses import replace
from typing import ClassVar

from megatron_grow.operators.depth.random import Random
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.tensors import ZERO


class Zero(Random):
    """Keep the source's layers at the bottom and put layers that are all zeros on top.

    Function-preserving, exactly. Without biases every gradient inside a zero layer is zero for ever
    (arXiv 2511.04981, table 1, rejects it for that); it is here as a control.
    """

    preserves_function: ClassVar[bool] = True
    can_fade_in: ClassVar[bool] = False

    def layer_map(self, source: int, target: int) -> Gather:
        """w1 w2 -> w1 w2 0 0."""
        return replace(super().layer_map(source, target), fresh=ZERO)
