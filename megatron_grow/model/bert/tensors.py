"""All tensors of a BERT; light to import, for the converter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from megatron_grow.config.model import ModelConfig
from megatron_grow.model.tensors import (
    attention_tensors,
    hidden,
    mlp_tensors,
    norm_tensors,
    pre_norm_layers,
)
from megatron_grow.state.axes import HIDDEN, POSITION, VOCAB, Axis, AxisRule, Role
from megatron_grow.state.tensors import Constant, LogicalTensor, Normal, Part

LAYERS = "encoder.layers."
ATTENTION = f"{LAYERS}self_attention."
MLP = f"{LAYERS}mlp."
EMBEDDING = "embedding.word_embeddings.weight"
POSITIONS = "embedding.position_embeddings.weight"
TOKEN_TYPES = "embedding.tokentype_embeddings.weight"
EMBEDDING_NORM = "embedding.embedding_dropout.0."
ATTENTION_NORM = f"{LAYERS}self_attn_bda.norm."
MLP_NORM = f"{LAYERS}mlp_bda.norm."
FINAL_NORM = "encoder.final_layernorm."
LM_DENSE = "lm_head.dense."
LM_NORM = "lm_head.layer_norm."
HEAD = "output_layer.weight"
HEAD_BIAS = "output_layer.bias"
POOLER = "pooler.dense."
SENTENCE_HEAD = "binary_head."

TOKEN_TYPE = AxisRule("token_type")
"""Which of two sentences a token is of."""
SENTENCE_CLASS = AxisRule("sentence_class")
"""Whether the second sentence follows the first, or not."""
TRANSFORMED = AxisRule(
    "transformed",
    HIDDEN.grown_by,
    HIDDEN.fields,
    HIDDEN.sized_by,
    activated=True,
    follows=HIDDEN.name,
)
"""What the dense layer of a head makes of hidden units, as many and grown alike; it has a name of
its own, since that layer's rows and its columns are drawn in two ways."""


def bert_tensors(
    model: ModelConfig,
    target_depth: int | None,
    *,
    post_norm: bool,
    token_types: int,
    sentence_head: bool,
    first_position: int,
) -> dict[str, LogicalTensor]:
    """All tensors of a BERT of shape ``model``, by key.

    Args:
        model: the shape.
        target_depth: the depth that the run ends with, which scales the initial residual outputs
            of a pre-norm model; the model's own if absent. Those of a post-norm model, whose stream
            is normalised after every sum, begin as all other matrices.
        post_norm: normalise sums of the residual stream, instead of what branches read.
        token_types: rows of the embedding of token types; 0: there is none.
        sentence_head: whether there are a pooler and a head over pairs of sentences.
        first_position: row of the table of positions that the first token has.
    """
    return {
        tensor.key: tensor
        for tensor in (
            *_embeddings(model, token_types, first_position),
            *(_post_norm_layers(model) if post_norm else _layers(model, target_depth)),
            *_masked_token_head(model),
            *(_sentence_head(model) if sentence_head else ()),
        )
    }


def _embeddings(
    model: ModelConfig, token_types: int, first_position: int
) -> Iterator[LogicalTensor]:
    positions = Axis(POSITION, model.max_position_embeddings, Role.INDEX, reserved=first_position)
    word = _matrix(EMBEDDING, _tokens(model), hidden(model), model, "embedding")
    tied = model.share_embeddings_and_output_weights
    yield replace(word, tied_as=HEAD) if tied else word
    yield _matrix(POSITIONS, positions, hidden(model), model, "positions")
    if token_types:
        types = Axis(TOKEN_TYPE, token_types, Role.INDEX)
        yield _matrix(TOKEN_TYPES, types, hidden(model), model, "embedding")


def _layers(model: ModelConfig, target_depth: int | None) -> Iterator[LogicalTensor]:
    """The layers of a pre-norm model, and its final norm."""
    if model.num_layers:
        yield from pre_norm_layers(LAYERS, model, target_depth or model.num_layers)
    yield from norm_tensors(FINAL_NORM, hidden(model), model, layers=False, part="final_norm")


def _post_norm_layers(model: ModelConfig) -> Iterator[LogicalTensor]:
    """The norm of the embeddings, and the layers of a post-norm model."""
    yield from norm_tensors(EMBEDDING_NORM, hidden(model), model, layers=False, part="embedding")
    if model.num_layers:
        yield from attention_tensors(ATTENTION, model, None)
        yield from mlp_tensors(MLP, model, None)
        for tensor in norm_tensors(ATTENTION_NORM, hidden(model), model):
            yield replace(tensor, stream_norm="inside")
        for tensor in norm_tensors(MLP_NORM, hidden(model), model):
            yield replace(tensor, stream_norm="last")


def _masked_token_head(model: ModelConfig) -> Iterator[LogicalTensor]:
    yield from _dense(LM_DENSE, model)
    # A tied head is the embedding, which copies must not divide among them: this norm is.
    tied = model.share_embeddings_and_output_weights
    last = hidden(model, Role.CONSUMES if tied else Role.PRODUCES)
    yield from norm_tensors(LM_NORM, last, model, layers=False, part="head")
    if not tied:
        head = _matrix(HEAD, _tokens(model), hidden(model, Role.CONSUMES), model, "head")
        yield replace(head, begins_as=EMBEDDING)
    yield _bias(HEAD_BIAS, _tokens(model))


def _sentence_head(model: ModelConfig) -> Iterator[LogicalTensor]:
    yield from _dense(POOLER, model)
    classes = Axis(SENTENCE_CLASS, 2, Role.INDEX)
    weight = f"{SENTENCE_HEAD}weight"
    yield _matrix(weight, classes, hidden(model, Role.CONSUMES), model, "head")
    yield _bias(f"{SENTENCE_HEAD}bias", classes)


def _dense(prefix: str, model: ModelConfig) -> Iterator[LogicalTensor]:
    made = Axis(TRANSFORMED, model.hidden_size, Role.PRODUCES)
    yield _matrix(f"{prefix}weight", made, hidden(model, Role.CONSUMES), model, "head")
    yield _bias(f"{prefix}bias", made)


def _tokens(model: ModelConfig) -> Axis:
    return Axis(VOCAB, model.vocabulary, Role.INDEX, model.make_vocab_size_divisible_by)


def _matrix(key: str, rows: Axis, columns: Axis, model: ModelConfig, part: Part) -> LogicalTensor:
    return LogicalTensor(key, (rows, columns), (1, 1), Normal(model.init_method_std), part=part)


def _bias(key: str, axis: Axis) -> LogicalTensor:
    return LogicalTensor(key, (axis,), (1,), Constant(0.0), part="head")
