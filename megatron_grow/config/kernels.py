"""Which parts of a step are computed in fewer, larger kernels."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import check_fields

PARTS_OF_A_LAYER = frozenset({"rotary", "activation", "bias_dropout_add", "norms"})
"""Kernels of what is in a layer. One that is compiled as a whole keeps for its backward pass what
it would with all of these."""


@dataclass
class KernelsSection:
    """Parts of a step in fewer kernels, by torch alone; values differ by rounding.

    Each is null: where it helps, which is on a GPU that has what it needs; or true, or false.
    """

    attention: bool | None = None
    """Attention without a mask by cuDNN where it can, else by the flash kernels."""
    cross_entropy: bool | None = None
    """The softmax of the loss, compiled: one walk over the logits instead of six."""
    rotary: bool | None = None
    """Rotary embeddings, compiled, from tables that are made once."""
    activation: bool | None = None
    """Bias and activation of a feed-forward network, gated or not, compiled."""
    bias_dropout_add: bool | None = None
    """Bias, dropout and the residual sum by megatron-core's compiled function."""
    norms: bool | None = None
    """RMS norms, compiled; null: only where this torch has no kernel of its own for them."""
    weight_gradients: bool | None = None
    """Gradients of matrices added to the fp32 buffer by the product itself, never rounded to
    bf16."""
    layers: bool | None = None
    """Whole transformer layers, each one compiled function, in stages without tensor or context
    parallelism: for those that are bound by launching kernels. Without weight_gradients, which ends
    a graph at each matrix. null: nowhere."""

    def __post_init__(self) -> None:
        check_fields(self, "kernels.")
        if self.layers and self.weight_gradients:
            raise UserError(
                "kernels.layers=true and kernels.weight_gradients=true exclude each other; "
                "weight_gradients may be null or false"
            )

    def on_a_gpu(self, parallel: ParallelConfig) -> frozenset[str]:
        """What a stage uses on a GPU that has what is needed, or a kernel of torch's own."""
        asked = asdict(self)
        asked["layers"] = bool(self.layers) and whole_layers_need(parallel) is None  # null is off
        if asked["layers"]:
            asked["weight_gradients"] = False
        return frozenset(name for name, on in asked.items() if on is not False)


def whole_layers_need(parallel: ParallelConfig) -> str | None:
    """What a layout would need to have instead to compile whole layers; None if nothing.

    Ranks wait for each other within a layer.
    """
    if parallel.tensor_model_parallel_size > 1:
        return "tensor_model_parallel_size=1"
    if parallel.context_parallel_size > 1:
        return "context_parallel_size=1"
    return "overlap_param_gather=false" if parallel.overlap_param_gather else None
