"""All tensors of a GPT; light to import, for the converter."""

from __future__ import annotations

from math import sqrt
from typing import Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.state.axes import (
    FFN,
    GATE_UP,
    HEAD_DIM,
    HIDDEN,
    KV_GROUP,
    LAYER,
    POSITION,
    QKV_HEAD,
    QUERY_HEAD,
    VOCAB,
    Axis,
    Role,
)
from megatron_grow.state.tensors import Constant, LogicalTensor, Normal, Part

LAYERS = "decoder.layers."
EMBEDDING = "embedding.word_embeddings.weight"
POSITIONS = "embedding.position_embeddings.weight"
FINAL_NORM = "decoder.final_layernorm."
HEAD = "output_layer.weight"


def gpt_tensors(model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
    """All tensors of a GPT of shape ``model``, by key.

    Args:
        model: the shape.
        target_depth: the depth that the run ends with, which scales the initial residual outputs
            by 1 / sqrt(2 x depth) (GPT-2); the model's own if absent.
    """
    tokens = Axis(VOCAB, model.vocabulary, Role.INDEX, model.make_vocab_size_divisible_by)
    tensors = [_embedding(EMBEDDING, tokens, model, "embedding")]
    if model.position_embedding_type == "learned_absolute":
        positions = Axis(POSITION, model.max_position_embeddings, Role.INDEX)
        tensors.append(_embedding(POSITIONS, positions, model, "positions"))
    if model.num_layers:
        tensors += _layer_tensors(model, target_depth or model.num_layers)
    # A tied head is the embedding, which copies must not divide among them: the last norm is.
    tied = model.share_embeddings_and_output_weights
    last = _hidden(model, Role.CONSUMES if tied else Role.PRODUCES)
    tensors += _norm(FINAL_NORM, (), last, model, "final_norm")
    if not model.share_embeddings_and_output_weights:
        tensors.append(_embedding(HEAD, tokens, model, "head"))
    return {tensor.key: tensor for tensor in tensors}


def _hidden(model: ModelConfig, role: Role = Role.PRODUCES) -> Axis:
    return Axis(HIDDEN, model.hidden_size, role)


def _embedding(key: str, rows: Axis, model: ModelConfig, part: Part) -> LogicalTensor:
    # The head reads the residual stream; embeddings write it.
    role = Role.CONSUMES if key == HEAD else Role.PRODUCES
    return LogicalTensor(
        key,
        (rows, _hidden(model, role)),
        groups=(1, 1),
        init=Normal(model.init_method_std),
        part=part,
        begins_as=EMBEDDING if key == HEAD else None,
        tied_as=HEAD if key == EMBEDDING and model.share_embeddings_and_output_weights else None,
    )


def _norm(
    prefix: str,
    layer: tuple[Axis, ...],
    axis: Axis,
    model: ModelConfig,
    part: Part = "blocks",
    unfused: str | None = None,
) -> list[LogicalTensor]:
    def parameter(name: str, init: float, norm: Literal["gain", "bias"]) -> LogicalTensor:
        return LogicalTensor(
            f"{prefix}{name}",
            (*layer, axis),
            (1,) * (len(layer) + 1),
            Constant(init),
            norm=norm,
            part=part,
            unfused_key=unfused and f"{unfused}{name}",
        )

    gain, bias = parameter("weight", 1.0, "gain"), parameter("bias", 0.0, "bias")
    return [gain] if model.normalization == "RMSNorm" else [gain, bias]


def _layer_tensors(model: ModelConfig, target_depth: int) -> list[LogicalTensor]:
    layer = Axis(LAYER, model.num_layers, Role.INDEX)
    produced, consumed = _hidden(model), _hidden(model, Role.CONSUMES)
    queries_per_group = model.num_attention_heads // model.query_groups
    # Megatron interleaves each group's query heads with its key and its value head.
    qkv = (
        Axis(KV_GROUP, model.query_groups, Role.PRODUCES),
        Axis(QKV_HEAD, queries_per_group + 2, Role.PRODUCES),
        Axis(HEAD_DIM, model.head_dim, Role.PRODUCES),
    )
    context = (
        Axis(KV_GROUP, model.query_groups, Role.CONSUMES),
        Axis(QUERY_HEAD, queries_per_group, Role.CONSUMES),
        Axis(HEAD_DIM, model.head_dim, Role.CONSUMES),
    )
    ffn_in = (
        *((Axis(GATE_UP, 2, Role.INDEX),) if model.gated else ()),
        Axis(FFN, model.ffn_size, Role.PRODUCES),
    )
    ffn_out = Axis(FFN, model.ffn_size, Role.CONSUMES)
    inner = Normal(model.init_method_std)
    outer = Normal(model.init_method_std / sqrt(2 * target_depth))
    attention, mlp = f"{LAYERS}self_attention.", f"{LAYERS}mlp."

    def bias(key: str, axes: tuple[Axis, ...], ends: bool = False) -> LogicalTensor:
        return LogicalTensor(key, (layer, *axes), (1, len(axes)), Constant(0.0), ends_branch=ends)

    tensors = [
        # Megatron keeps the norms under the names that they have when fused with the projection.
        *_norm(
            f"{attention}linear_qkv.layer_norm_",
            (layer,),
            produced,
            model,
            unfused=f"{LAYERS}input_layernorm.",
        ),
        LogicalTensor(f"{attention}linear_qkv.weight", (layer, *qkv, consumed), (1, 3, 1), inner),
        LogicalTensor(
            f"{attention}linear_proj.weight",
            (layer, produced, *context),
            (1, 1, 3),
            outer,
            ends_branch=True,
        ),
        *_norm(
            f"{mlp}linear_fc1.layer_norm_",
            (layer,),
            produced,
            model,
            unfused=f"{LAYERS}pre_mlp_layernorm.",
        ),
        LogicalTensor(
            f"{mlp}linear_fc1.weight", (layer, *ffn_in, consumed), (1, len(ffn_in), 1), inner
        ),
        LogicalTensor(
            f"{mlp}linear_fc2.weight",
            (layer, produced, ffn_out),
            (1, 1, 1),
            outer,
            ends_branch=True,
        ),
    ]
    if model.add_bias_linear or model.add_qkv_bias:
        tensors.append(bias(f"{attention}linear_qkv.bias", qkv))
    if model.add_bias_linear:
        tensors += [
            bias(f"{attention}linear_proj.bias", (produced,), ends=True),
            bias(f"{mlp}linear_fc1.bias", ffn_in),
            bias(f"{mlp}linear_fc2.bias", (produced,), ends=True),
        ]
    if model.qk_layernorm:
        head = Axis(HEAD_DIM, model.head_dim, Role.PRODUCES)
        for name in ("q_layernorm.", "k_layernorm."):
            tensors += _norm(f"{attention}{name}", (layer,), head, model)
    return tensors
