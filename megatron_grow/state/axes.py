"""The axis table: the one place that knows what the axes of each tensor mean.

To support another architecture, add rows here.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from math import prod, sqrt
from typing import Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.state.sharding import DEALT, Dealt


class Role(Enum):
    """What a tensor does along an axis; decides how a duplicate is made."""

    INDEX = "index"
    """Selects among independent entries (layer, token, position)."""
    PRODUCES = "produces"
    """Rows: a duplicate entry is copied."""
    CONSUMES = "consumes"
    """Columns: duplicates of an input share its weight."""


@dataclass(frozen=True)
class Axis:
    """A labelled axis."""

    name: str
    size: int
    role: Role
    multiple: int | None = None
    """Tensor-parallel ranks have room for a multiple of this each: what lies behind ``size`` is
    padding, and no part of the tensor. None: they share the entries evenly."""


@dataclass(frozen=True)
class Normal:
    """Fresh entries are drawn from N(0, std^2)."""

    std: float


@dataclass(frozen=True)
class Constant:
    """Fresh entries have one value."""

    value: float


Init = Normal | Constant


@dataclass(frozen=True)
class LogicalTensor:
    """A tensor of the whole model, whatever the layout."""

    key: str
    """Megatron's checkpoint key."""
    axes: tuple[Axis, ...]
    """Fine axes: those that a growth, or a cut over ranks, may treat apart."""
    groups: tuple[int, ...]
    """How many fine axes make each dimension that Megatron's checkpoint has."""
    init: Init
    """How fresh entries are made."""
    norm: Literal["gain", "bias"] | None = None
    """Which parameter of a norm it is, if it is one."""
    ends_branch: bool = False
    """Whether it is the last of a residual branch: zero here, and the branch adds nothing."""

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the fine axes."""
        return tuple(axis.size for axis in self.axes)

    @cached_property
    def checkpoint_shape(self) -> tuple[int, ...]:
        """The shape under which Megatron's checkpoint stores the tensor."""
        shape, axis = [], 0
        for count in self.groups:
            shape.append(prod(self.shape[axis : axis + count]))
            axis += count
        return tuple(shape)

    def pads_to(self, shape: tuple[int, ...]) -> bool:
        """Whether ``shape`` is the checkpoint's, or adds rows that pad a vocabulary."""
        expected = self.checkpoint_shape
        if self.axes[0].name != "vocab":
            return shape == expected
        return shape[:1] >= expected[:1] and shape[1:] == expected[1:]

    @property
    def cut(self) -> str | None:
        """The axis that tensor parallelism cuts; None: every rank holds all of it."""
        names = (axis.name for axis in self.axes)
        return next((name for name in names if DEALT.get(name) is Dealt.TENSOR), None)

    @property
    def stacked(self) -> bool:
        """Whether axis 0 is the layer."""
        return self.axes[0].name == "layer"

    @property
    def is_matrix(self) -> bool:
        """Whether each layer's, or the whole if it has no layers, is a matrix."""
        return len(self.groups) - self.stacked == 2

    def axis(self, name: str) -> int:
        """Position of the axis called ``name``."""
        return next(i for i, axis in enumerate(self.axes) if axis.name == name)


LAYERS = "decoder.layers."
EMBEDDING = "embedding.word_embeddings.weight"
HEAD = "output_layer.weight"


def logical_tensors(
    model: ModelConfig, target_depth: int | None = None
) -> dict[str, LogicalTensor]:
    """All tensors of a GPT of shape ``model``, by key.

    Args:
        model: the shape.
        target_depth: the depth that the run ends with, which scales the initial residual outputs
            by 1 / sqrt(2 x depth) (GPT-2); the model's own if absent.
    """
    tokens = Axis("vocab", model.vocabulary, Role.INDEX, model.make_vocab_size_divisible_by)
    tensors = [_embedding(EMBEDDING, tokens, model)]
    if model.position_embedding_type == "learned_absolute":
        positions = Axis("position", model.max_position_embeddings, Role.INDEX)
        tensors.append(_embedding("embedding.position_embeddings.weight", positions, model))
    if model.num_layers:
        tensors += _layer_tensors(model, target_depth or model.num_layers)
    # A tied head is the embedding, which copies must not divide among them: the last norm is.
    tied = model.share_embeddings_and_output_weights
    last = _hidden(model, Role.CONSUMES if tied else Role.PRODUCES)
    tensors += _norm("decoder.final_layernorm.", (), last, model)
    if not model.share_embeddings_and_output_weights:
        tensors.append(_embedding(HEAD, tokens, model))
    return {tensor.key: tensor for tensor in tensors}


def drawn_from(key: str, tensors: Container[str]) -> str:
    """Which of ``tensors``, a model's, the tensor ``key`` of a model grown from it is drawn from.

    A head that is tied is the embedding.
    """
    return EMBEDDING if key == HEAD and key not in tensors else key


def _hidden(model: ModelConfig, role: Role = Role.PRODUCES) -> Axis:
    return Axis("hidden", model.hidden_size, role)


def _embedding(key: str, rows: Axis, model: ModelConfig) -> LogicalTensor:
    # The head reads the residual stream; embeddings write it.
    role = Role.CONSUMES if key == HEAD else Role.PRODUCES
    return LogicalTensor(
        key,
        (rows, _hidden(model, role)),
        groups=(1, 1),
        init=Normal(model.init_method_std),
    )


def _norm(
    prefix: str, layer: tuple[Axis, ...], axis: Axis, model: ModelConfig
) -> list[LogicalTensor]:
    axes, groups = (*layer, axis), (1,) * (len(layer) + 1)
    gain = LogicalTensor(f"{prefix}weight", axes, groups, Constant(1.0), norm="gain")
    if model.normalization == "RMSNorm":
        return [gain]
    return [gain, LogicalTensor(f"{prefix}bias", axes, groups, Constant(0.0), norm="bias")]


def _layer_tensors(model: ModelConfig, target_depth: int) -> list[LogicalTensor]:
    layer = Axis("layer", model.num_layers, Role.INDEX)
    produced, consumed = _hidden(model), _hidden(model, Role.CONSUMES)
    queries_per_group = model.num_attention_heads // model.query_groups
    # Megatron interleaves each group's query heads with its key and its value head.
    qkv = (
        Axis("kv_group", model.query_groups, Role.PRODUCES),
        Axis("qkv_head", queries_per_group + 2, Role.PRODUCES),
        Axis("head_dim", model.head_dim, Role.PRODUCES),
    )
    context = (
        Axis("kv_group", model.query_groups, Role.CONSUMES),
        Axis("query_head", queries_per_group, Role.CONSUMES),
        Axis("head_dim", model.head_dim, Role.CONSUMES),
    )
    ffn_in = (
        *((Axis("gate_up", 2, Role.INDEX),) if model.gated else ()),
        Axis("ffn", model.ffn_size, Role.PRODUCES),
    )
    ffn_out = Axis("ffn", model.ffn_size, Role.CONSUMES)
    inner = Normal(model.init_method_std)
    outer = Normal(model.init_method_std / sqrt(2 * target_depth))
    attention, mlp = f"{LAYERS}self_attention.", f"{LAYERS}mlp."

    def bias(key: str, axes: tuple[Axis, ...], ends: bool = False) -> LogicalTensor:
        return LogicalTensor(key, (layer, *axes), (1, len(axes)), Constant(0.0), ends_branch=ends)

    tensors = [
        # Megatron keeps the norms under the names that they have when fused with the projection.
        *_norm(f"{attention}linear_qkv.layer_norm_", (layer,), produced, model),
        LogicalTensor(f"{attention}linear_qkv.weight", (layer, *qkv, consumed), (1, 3, 1), inner),
        LogicalTensor(
            f"{attention}linear_proj.weight",
            (layer, produced, *context),
            (1, 1, 3),
            outer,
            ends_branch=True,
        ),
        *_norm(f"{mlp}linear_fc1.layer_norm_", (layer,), produced, model),
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
        head = Axis("head_dim", model.head_dim, Role.PRODUCES)
        for name in ("q_layernorm.", "k_layernorm."):
            tensors += _norm(f"{attention}{name}", (layer,), head, model)
    return tensors
