"""Tensors that transformers of any architecture have; light to import, for the converter."""

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
    QKV_HEAD,
    QUERY_HEAD,
    Axis,
    Role,
)
from megatron_grow.state.tensors import Constant, LogicalTensor, Normal, Part


def hidden(model: ModelConfig, role: Role = Role.PRODUCES) -> Axis:
    """The residual stream, which a tensor writes (``PRODUCES``) or reads."""
    return Axis(HIDDEN, model.hidden_size, role)


def norm_tensors(
    prefix: str,
    axis: Axis,
    model: ModelConfig,
    *,
    layers: bool = True,
    part: Part = "blocks",
    unfused: str | None = None,
    ends_branch: bool = False,
) -> list[LogicalTensor]:
    """The parameters of a norm: a gain and, of LayerNorm, a bias.

    Args:
        prefix: of their keys.
        axis: what is normalised.
        model: the shape.
        layers: whether every layer has one.
        part: of the model.
        unfused: prefix of their keys in layers that do not fuse the norm with a projection.
        ends_branch: whether it is the last of a residual branch.
    """
    axes = (*((_layer(model),) if layers else ()), axis)

    def parameter(name: str, init: float, norm: Literal["gain", "bias"]) -> LogicalTensor:
        return LogicalTensor(
            f"{prefix}{name}",
            axes,
            (1,) * len(axes),
            Constant(init),
            norm=norm,
            ends_branch=ends_branch,
            part=part,
            unfused_key=unfused and f"{unfused}{name}",
        )

    gain, bias = parameter("weight", 1.0, "gain"), parameter("bias", 0.0, "bias")
    return [gain] if model.normalization == "RMSNorm" else [gain, bias]


def pre_norm_layers(prefix: str, model: ModelConfig, target_depth: int) -> list[LogicalTensor]:
    """All tensors of layers whose norms begin the branches.

    Args:
        prefix: of the keys, before ``self_attention.`` and ``mlp.``.
        model: the shape.
        target_depth: the depth that the run ends with, which scales the initial outputs.
    """
    attention, mlp = f"{prefix}self_attention.", f"{prefix}mlp."
    # Megatron keeps the norms under the names that they have when fused with the projection.
    norms = {
        f"{attention}linear_qkv.layer_norm_": f"{prefix}input_layernorm.",
        f"{mlp}linear_fc1.layer_norm_": f"{prefix}pre_mlp_layernorm.",
    }
    return [
        *(
            tensor
            for fused, unfused in norms.items()
            for tensor in norm_tensors(fused, hidden(model), model, unfused=unfused)
        ),
        *attention_tensors(attention, model, target_depth),
        *mlp_tensors(mlp, model, target_depth),
    ]


def attention_tensors(
    prefix: str, model: ModelConfig, target_depth: int | None
) -> list[LogicalTensor]:
    """Self-attention of every layer, without the norm before it.

    Args:
        prefix: of the keys.
        model: the shape.
        target_depth: the depth that the run ends with, which scales the initial output; None: it
            begins as all other matrices.
    """
    queries_per_group = model.num_attention_heads // model.query_groups
    # Megatron interleaves each group's query heads with its key and its value head.
    qkv = (
        Axis(KV_GROUP, model.query_groups, Role.PRODUCES),
        Axis(QKV_HEAD, queries_per_group + 2, Role.PRODUCES, fuses=(queries_per_group, 1, 1)),
        Axis(HEAD_DIM, model.head_dim, Role.PRODUCES),
    )
    context = (
        Axis(KV_GROUP, model.query_groups, Role.CONSUMES),
        Axis(QUERY_HEAD, queries_per_group, Role.CONSUMES),
        Axis(HEAD_DIM, model.head_dim, Role.CONSUMES),
    )
    tensors = [
        _matrix(f"{prefix}linear_qkv.weight", qkv, (hidden(model, Role.CONSUMES),), model),
        _output(f"{prefix}linear_proj.weight", context, model, target_depth),
    ]
    if model.add_bias_linear or model.add_qkv_bias:
        tensors.append(_bias(f"{prefix}linear_qkv.bias", qkv, model))
    if model.add_bias_linear:
        tensors.append(_bias(f"{prefix}linear_proj.bias", (hidden(model),), model, ends=True))
    if model.qk_layernorm:
        head = Axis(HEAD_DIM, model.head_dim, Role.PRODUCES)
        for name in ("q_layernorm.", "k_layernorm."):
            tensors += norm_tensors(f"{prefix}{name}", head, model)
    return tensors


def mlp_tensors(prefix: str, model: ModelConfig, target_depth: int | None) -> list[LogicalTensor]:
    """The feed-forward network of every layer, without the norm before it.

    Args:
        prefix: of the keys.
        model: the shape.
        target_depth: the depth that the run ends with, which scales the initial output; None: it
            begins as all other matrices.
    """
    inner = (
        *((Axis(GATE_UP, 2, Role.INDEX, fuses=(1, 1)),) if model.gated else ()),
        Axis(FFN, model.ffn_size, Role.PRODUCES),
    )
    outer = (Axis(FFN, model.ffn_size, Role.CONSUMES),)
    tensors = [
        _matrix(f"{prefix}linear_fc1.weight", inner, (hidden(model, Role.CONSUMES),), model),
        _output(f"{prefix}linear_fc2.weight", outer, model, target_depth),
    ]
    if model.add_bias_linear:
        tensors += [
            _bias(f"{prefix}linear_fc1.bias", inner, model),
            _bias(f"{prefix}linear_fc2.bias", (hidden(model),), model, ends=True),
        ]
    return tensors


def _layer(model: ModelConfig) -> Axis:
    return Axis(LAYER, model.num_layers, Role.INDEX)


def _matrix(
    key: str, rows: tuple[Axis, ...], columns: tuple[Axis, ...], model: ModelConfig
) -> LogicalTensor:
    init, groups = Normal(model.init_method_std), (1, len(rows), len(columns))
    return LogicalTensor(key, (_layer(model), *rows, *columns), groups, init)


def _output(
    key: str, columns: tuple[Axis, ...], model: ModelConfig, target_depth: int | None
) -> LogicalTensor:
    """The last matrix of a residual branch; initially scaled by 1 / sqrt(2 x depth) (GPT-2)."""
    scale = sqrt(2 * target_depth) if target_depth else 1.0
    init = Normal(model.init_method_std / scale)
    axes, groups = (_layer(model), hidden(model), *columns), (1, 1, len(columns))
    return LogicalTensor(key, axes, groups, init, ends_branch=True)


def _bias(
    key: str, axes: tuple[Axis, ...], model: ModelConfig, ends: bool = False
) -> LogicalTensor:
    axes, groups = (_layer(model), *axes), (1, len(axes))
    return LogicalTensor(key, axes, groups, Constant(0.0), ends_branch=ends)
