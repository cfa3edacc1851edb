"""All tensors of a GPT; light to import, for the converter."""

from __future__ import annotations

from megatron_grow.config.model import ModelConfig
from megatron_grow.model.tensors import hidden, norm_tensors, pre_norm_layers
from megatron_grow.state.axes import POSITION, VOCAB, Axis, Role
from megatron_grow.state.tensors import LogicalTensor, Normal, Part

LAYERS = "decoder.layers."
ATTENTION = f"{LAYERS}self_attention."
MLP = f"{LAYERS}mlp."
EMBEDDING = "embedding.word_embeddings.weight"
POSITIONS = "embedding.position_embeddings.weight"
FINAL_NORM = "decoder.final_layernorm."
HEAD = "output_layer.weight"


def gpt_tensors(model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
    """All tensors of a GPT of shape ``model``, by key.

    Args:
        model: the shape.
        target_depth: the depth that the run ends with, which scales the initial residual outputs;
            the model's own if absent.
    """
    tokens = Axis(VOCAB, model.vocabulary, Role.INDEX, model.make_vocab_size_divisible_by)
    tensors = [_embedding(EMBEDDING, tokens, model, "embedding")]
    if model.position_embedding_type == "learned_absolute":
        positions = Axis(POSITION, model.max_position_embeddings, Role.INDEX)
        tensors.append(_embedding(POSITIONS, positions, model, "positions"))
    if model.num_layers:
        tensors += pre_norm_layers(LAYERS, model, target_depth or model.num_layers)
    # A tied head is the embedding, which copies must not divide among them: the last norm is.
    tied = model.share_embeddings_and_output_weights
    last = hidden(model, Role.CONSUMES if tied else Role.PRODUCES)
    tensors += norm_tensors(FINAL_NORM, last, model, layers=False, part="final_norm")
    if not tied:
        tensors.append(_embedding(HEAD, tokens, model, "head"))
    return {tensor.key: tensor for tensor in tensors}


def _embedding(key: str, rows: Axis, model: ModelConfig, part: Part) -> LogicalTensor:
    # The head reads the residual stream; embeddings write it.
    role = Role.CONSUMES if key == HEAD else Role.PRODUCES
    return LogicalTensor(
        key,
        (rows, hidden(model, role)),
        groups=(1, 1),
        init=Normal(model.init_method_std),
        part=part,
        begins_as=EMBEDDING if key == HEAD else None,
        tied_as=HEAD if key == EMBEDDING and model.share_embeddings_and_output_weights else None,
    )
