"""What the forward pass of a micro-batch leaves in memory for its backward pass, by formula.

Of the layers that architectures share, as :mod:`megatron_grow.model.layers` builds them: attention
is a flash kernel, which keeps no square of the sequence. The count is that of Korthikanti et al.
2022 (arXiv 2205.05198, equations 1 to 4), without their dropout masks unless there is dropout, and
with what rotary positions and a gated unit keep besides.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from megatron_grow.config.batch import BatchShape
from megatron_grow.config.kernels import PARTS_OF_A_LAYER
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import DataSection
from megatron_grow.model.architectures import architecture_of, data_options_of

_STATISTIC = 4
"""Bytes of a mean, a deviation or a log of a sum, which are fp32 in all precisions."""
_BLOCK = 1 << 27
"""Logits that the loss works on at once on a GPU (``model/layers/cross_entropy.py``)."""
_BATCH = 28
"""Bytes of a token of a batch: itself, its label and its position, of 8; its weight, of 4."""


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch on one rank, each rank's part of tensors that ranks share."""

    boundary: int
    """The residual stream between two layers: all that is kept of a layer that is recomputed."""
    layer: int
    """One layer, its input included."""
    layer_backward: int
    """What passing backward through a layer takes besides, gradients of activations and those of a
    weight before they are added to the others."""
    head: int
    """The final norm's output, and logits, which become their own gradient."""
    loss: int
    """What the loss takes besides: a block of logits in fp32."""
    head_backward: int
    """What passing backward through the head takes besides."""
    embedding_gradient: int
    """That of the token embedding or the head, before it is added to the others: where these are
    one parameter, the head's waits for the embedding's until the pass ends. Where the product adds
    it itself, megatron-core still makes room for it."""
    gathered: int
    """The whole input of a matrix, of which sequence-parallel ranks keep parts: megatron-core has a
    buffer for it, which stays."""
    batch: int
    """Tokens, labels, positions and weights."""


def activations(
    model: ModelConfig,
    parallel: ParallelConfig,
    batch: BatchShape,
    bytes_per_value: int,
    data: DataSection | None = None,
    kernels: Collection[str] = (),
) -> Activations:
    """Activations of one micro-batch.

    Args:
        model: the shape.
        parallel: the layout.
        batch: of a step.
        bytes_per_value: of activations and weights, 2 under bf16.
        data: of the run, as in :func:`.flops.flops_per_sample`.
        kernels: those of :class:`~megatron_grow.config.kernels.KernelsSection` that are used.
    """
    if "layers" in kernels:
        kernels = PARTS_OF_A_LAYER.union(kernels)
    ranks = parallel.tensor_model_parallel_size
    options = data_options_of(model, data or DataSection())
    architecture = architecture_of(model)
    samples, context = batch.micro_batch_size, parallel.context_parallel_size
    tokens = samples * architecture.hidden_length(model, batch.seq_length, options) // context
    predicted = samples * architecture.head_length(batch.seq_length, options) // context
    shared = parallel.sequence_parallel and ranks > 1
    in_stream = tokens // ranks if shared else tokens
    hidden, rows = model.hidden_size, model.padded_vocab_size(ranks) // ranks
    boundary = in_stream * hidden * bytes_per_value
    logits = predicted * rows
    embedding = rows * hidden * bytes_per_value
    split = _split_values(model, kernels) * tokens // ranks * bytes_per_value
    statistics = tokens * model.num_attention_heads // ranks + in_stream * _norm_statistics(model)
    masks = 2 * in_stream * hidden if model.hidden_dropout else 0
    angles = 0
    if model.position_embedding_type == "rope" and "rotary" not in kernels:
        # Cosines and sines, for queries and for keys.
        angles = 4 * batch.seq_length // context * model.head_dim * bytes_per_value
    blocks = "cross_entropy" not in kernels
    # An RMS norm that is not one kernel keeps its output without the gain besides.
    normed = boundary * (2 if model.normalization == "RMSNorm" and "norms" not in kernels else 1)
    unit = model.ffn_size // ranks
    # Gradients of the stream, of the unit's output (of gate and up, where it is gated), and of the
    # matrix behind it: by the next one, the output itself is gone.
    backward = tokens * hidden + tokens * unit * (2 if model.gated else 1) + hidden * unit
    return Activations(
        boundary=boundary,
        # The stream before each branch, and what the norm that begins the branch makes of it.
        layer=2 * (boundary + normed) + split + statistics * _STATISTIC + masks + angles,
        layer_backward=backward * bytes_per_value,
        head=normed + logits * bytes_per_value,
        loss=4 * min(logits, _BLOCK) if bytes_per_value < 4 and blocks else 0,
        # The gradient of its input, whole, and then this rank's part of the sum.
        head_backward=tokens * hidden * bytes_per_value + embedding + (boundary if shared else 0),
        embedding_gradient=embedding,
        gathered=tokens * hidden * bytes_per_value if shared else 0,
        batch=tokens * _BATCH,
    )


def _split_values(model: ModelConfig, kernels: Collection[str]) -> int:
    """Values of a token in a layer that tensor-parallel ranks share."""
    queries = model.num_attention_heads * model.head_dim
    keys = model.query_groups * model.head_dim
    attention = queries + 2 * keys + queries  # what is projected, and what attention gives
    if model.position_embedding_type == "rope":
        attention += queries + keys
    elif model.query_groups != model.num_attention_heads:
        attention += queries  # heads in a row: a copy
    if model.qk_layernorm:
        attention += queries + keys
    # The unit's input and output; a gated one has gate and up, and keeps what both become.
    gated = 3 if "activation" in kernels else 5
    return attention + model.ffn_size * (gated if model.gated else 2)


def _norm_statistics(model: ModelConfig) -> int:
    """Means and deviations of a token in a layer."""
    return 2 * (2 if model.normalization == "LayerNorm" else 1)
