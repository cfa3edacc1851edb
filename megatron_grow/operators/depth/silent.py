"""New layers that add nothing where layers normalise the residual stream itself (post-norm).

Such a layer is norm(norm(x + 0) + 0), and x, which left a norm, is g * n + b. A norm takes no gain
g back that differs from unit to unit, so no gain and bias of its own make that x. But x need not
be made: if the layer before ends with gain 1 and bias 0, the new one reads n; norms with gain 1
and bias 0 pass n on, since it is normalised already, and the last of them, with g and b, makes x
of it. So the last norm of a layer moves to the last of the new layers behind it, and all norms
between have gain 1 and bias 0, as fresh ones do.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_grow.config.model import ModelConfig
from megatron_grow.state.axis_map import FRESH
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.tensors import LogicalTensor

_SMALLEST = 2.0**-24
"""What fp32 rounds a number by, relatively."""


def stream_norm(tensor: LogicalTensor, layers: Sequence[int], silent: Sequence[bool]) -> Gather:
    """How layers of a norm of the stream are drawn, so that silent ones change nothing.

    Args:
        tensor: its gain or bias, of all layers.
        layers: for each layer of the target, the source's that it copies.
        silent: and whether its branches add nothing.
    """
    drawn, last = [], FRESH
    for i, layer in enumerate(layers):
        if not silent[i]:
            last = layer
        if tensor.stream_norm == "inside":
            drawn.append(FRESH if silent[i] else layer)
        else:
            drawn.append(FRESH if any(silent[i + 1 : i + 2]) else last)
    return Gather(tuple(drawn))


def caveat(target: ModelConfig, silent: Sequence[bool]) -> str | None:
    """Why silent layers change the function of ``target``, in post-norm; None if they do not."""
    if silent[0]:
        return (
            "a new layer at the bottom normalises the embeddings again, whose norm has a gain and "
            "a bias that no norm takes back (post-norm)"
        )
    if target.layernorm_epsilon > _SMALLEST:
        return (
            "norms of new layers normalise what is normalised already (post-norm), which changes "
            f"it by about layernorm_epsilon={target.layernorm_epsilon:g}; 1e-12, BERT's own, does "
            "not show"
        )
    return None
