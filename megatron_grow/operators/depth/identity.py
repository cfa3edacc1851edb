"""The operator ``identity``."""

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.depth.copying_zero import CopyingZero
from megatron_grow.state.axis_map import AxisMap
from megatron_grow.state.tensors import ZERO, LogicalTensor


class Identity(CopyingZero):
    """Insert copies whose norms and biases are zero, spread evenly among the originals.

    The depth operator of staged training (Shen et al. 2022, arXiv 2203.06211). Function-preserving,
    exactly: behind a zero norm a branch computes nothing. At first only the norms of a new layer
    receive gradient.
    """

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """Besides: a zero norm is one before a branch, not one of the stream."""
        super().check(source, target, where)
        if self.post_norm:
            raise UserError(
                f"{where}: identity sets norms before branches to zero; those of a post-norm model "
                "normalise the residual stream, which would end there; use copying_zero"
            )

    def layer_weights(self, tensor: LogicalTensor, layers: AxisMap) -> AxisMap:
        """Copies of matrices; zeros for norms and biases."""
        if tensor.norm is None and not tensor.key.endswith("bias"):
            return layers
        return layers.first_only(fresh=ZERO)
