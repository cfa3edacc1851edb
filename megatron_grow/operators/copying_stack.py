"""The operator ``copying_stack``."""

from typing import ClassVar

from megatron_grow.operators.base import DepthOperator
from megatron_grow.state.maps import Gather


class CopyingStack(DepthOperator):
    """Repeat the source's layers in order (StackBERT, Gong et al. 2019; G_stack, arXiv 2405.15319).

    Not function-preserving. As good as ``copying_inter`` and slightly better than ``random`` in
    arXiv 2511.04981.
    """

    name: ClassVar[str] = "copying_stack"

    def layers(self, source: int, target: int) -> Gather:
        """w1 w2 -> w1 w2 w1 w2."""
        return Gather(tuple(i % source for i in range(target)))
