"""A BERT in a page of plain PyTorch, from the same weights: what megatron-core's must compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from megatron_grow.config.model import ModelConfig
from tests.model.reference import Weights, after, attention, feed_forward, layer_of, linear, norm


class Text(NamedTuple):
    """What a BERT reads."""

    tokens: torch.Tensor
    """(batch, sequence)."""
    types: torch.Tensor
    """(batch, sequence)."""
    padding: torch.Tensor
    """(batch, sequence); True: not attended to."""


class Logits(NamedTuple):
    """What a BERT says."""

    tokens: torch.Tensor
    """Of all positions, or places, (batch, sequence, vocabulary)."""
    sentence: torch.Tensor | None
    """(batch, 2); None: it has no such head."""


def logits(
    model: ModelConfig,
    weights: Weights,
    text: Text,
    *,
    first_position: int = 0,
    places: Sequence[Sequence[int]] | None = None,
    predicted: slice = slice(None),
) -> Logits:
    """Of a model in post-norm if its weights have the norm of the embeddings, else in pre-norm.

    ``places`` are the tokens that share each place behind the first layer, whose queries and
    residual stream are their means; if absent, each has its own. The head of masked tokens reads
    those ``predicted``.
    """
    post = "embedding.embedding_dropout.0.weight" in weights
    embedding, length = weights["embedding.word_embeddings.weight"], text.tokens.shape[1]
    positions = weights["embedding.position_embeddings.weight"][first_position:]
    x = embedding[text.tokens] + positions[:length]
    if (types := weights.get("embedding.tokentype_embeddings.weight")) is not None:
        x = x + types[text.types]
    x = x * (model.embedding_multiplier or 1.0)
    residual, scaling = model.residual_multiplier or 1.0, model.logits_scaling or 1.0
    if post:
        x = norm(model, weights, "embedding.embedding_dropout.0", x)
    padding = text.padding[:, None, None, None, :]
    for layer in range(model.num_layers):
        mine = layer_of(weights, "encoder.layers.", layer)
        read = x if post else norm(model, mine, "self_attention.linear_qkv.layer_norm", x)
        asking = read
        if layer == 0 and places is not None:
            x, asking = (torch.stack([y[:, p].mean(1) for p in places], 1) for y in (x, read))
        x = x + residual * attention(model, mine, read, padding, asking)
        x = after(model, mine, "self_attn_bda.norm", x)
        read = x if post else norm(model, mine, "mlp.linear_fc1.layer_norm", x)
        x = x + residual * feed_forward(model, mine, "mlp", read)
        x = after(model, mine, "mlp_bda.norm", x)
    if not post:
        x = norm(model, weights, "encoder.final_layernorm", x)
    head = (
        embedding if model.share_embeddings_and_output_weights else weights["output_layer.weight"]
    )
    guess = norm(
        model,
        weights,
        "lm_head.layer_norm",
        functional.gelu(linear(weights, "lm_head.dense", x[:, predicted])),
    )
    sentence = None
    if "binary_head.weight" in weights:
        pooled = linear(weights, "pooler.dense", x[:, 0]).tanh()
        sentence = linear(weights, "binary_head", pooled / scaling)
    return Logits(guess / scaling @ head.T + weights["output_layer.bias"], sentence)
