"""The operator ``zero``."""

from dataclasses import replace
from typing import ClassVar

from megatron_grow.operators.random import Random
from megatron_grow.state.axes import Constant, LogicalTensor
from megatron_grow.state.maps import TensorMap


class Zero(Random):
    """Keep the source's layers at the bottom and put layers that are all zeros on top.

    Function-preserving, exactly. Without biases every gradient inside a zero layer is zero for ever
    (arXiv 2511.04981, table 1, rejects it for that); it is here as a control.
    """

    name: ClassVar[str] = "zero"
    preserves_function: ClassVar[bool] = True

    def weights(self, tensor: LogicalTensor, source: int) -> TensorMap:
        """w1 w2 -> w1 w2 0 0."""
        return replace(super().weights(tensor, source), fresh=Constant(0.0))
