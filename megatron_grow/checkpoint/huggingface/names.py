"""Which part of which logical tensor each stored tensor of a family holds."""

from __future__ import annotations

import re
from collections.abc import Iterator

from megatron_grow.checkpoint.regions import Region
from megatron_grow.config.model import ModelConfig
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.boxes import full
from megatron_grow.state.tensors import LogicalTensor

Rows = dict[str, tuple[str, str]]
"""By stored tensor: the logical tensor's key, and the axes that make each stored dimension.

``{layer}`` stands for each layer in turn. Axes are those of ``state/axes.py``, outermost first, and
brackets put several into one dimension. ``query``, ``key`` and ``value`` are parts of the axis
``qkv_head``; ``gate`` and ``up`` of ``gate_up``.
"""

_ATTENTION = "decoder.layers.self_attention."
_MLP = "decoder.layers.mlp."
_QUERIES = "(kv_group query head_dim)"
_KEYS = "(kv_group key head_dim)"
_VALUES = "(kv_group value head_dim)"

GPT2: Rows = {
    "transformer.wte.weight": ("embedding.word_embeddings.weight", "vocab hidden"),
    "transformer.wpe.weight": ("embedding.position_embeddings.weight", "position hidden"),
    "transformer.h.{layer}.ln_1.weight": (f"{_ATTENTION}linear_qkv.layer_norm_weight", "hidden"),
    "transformer.h.{layer}.ln_1.bias": (f"{_ATTENTION}linear_qkv.layer_norm_bias", "hidden"),
    # GPT-2's matrices are stored (in, out).
    "transformer.h.{layer}.attn.c_attn.weight": (
        f"{_ATTENTION}linear_qkv.weight",
        "hidden (qkv_head kv_group head_dim)",
    ),
    "transformer.h.{layer}.attn.c_attn.bias": (
        f"{_ATTENTION}linear_qkv.bias",
        "(qkv_head kv_group head_dim)",
    ),
    "transformer.h.{layer}.attn.c_proj.weight": (
        f"{_ATTENTION}linear_proj.weight",
        "(kv_group query_head head_dim) hidden",
    ),
    "transformer.h.{layer}.attn.c_proj.bias": (f"{_ATTENTION}linear_proj.bias", "hidden"),
    "transformer.h.{layer}.ln_2.weight": (f"{_MLP}linear_fc1.layer_norm_weight", "hidden"),
    "transformer.h.{layer}.ln_2.bias": (f"{_MLP}linear_fc1.layer_norm_bias", "hidden"),
    "transformer.h.{layer}.mlp.c_fc.weight": (f"{_MLP}linear_fc1.weight", "hidden ffn"),
    "transformer.h.{layer}.mlp.c_fc.bias": (f"{_MLP}linear_fc1.bias", "ffn"),
    "transformer.h.{layer}.mlp.c_proj.weight": (f"{_MLP}linear_fc2.weight", "ffn hidden"),
    "transformer.h.{layer}.mlp.c_proj.bias": (f"{_MLP}linear_fc2.bias", "hidden"),
    "transformer.ln_f.weight": ("decoder.final_layernorm.weight", "hidden"),
    "transformer.ln_f.bias": ("decoder.final_layernorm.bias", "hidden"),
    "lm_head.weight": ("output_layer.weight", "vocab hidden"),
}

LLAMA: Rows = {
    "model.embed_tokens.weight": ("embedding.word_embeddings.weight", "vocab hidden"),
    "model.layers.{layer}.input_layernorm.weight": (
        f"{_ATTENTION}linear_qkv.layer_norm_weight",
        "hidden",
    ),
    "model.layers.{layer}.self_attn.q_proj.weight": (
        f"{_ATTENTION}linear_qkv.weight",
        f"{_QUERIES} hidden",
    ),
    "model.layers.{layer}.self_attn.k_proj.weight": (
        f"{_ATTENTION}linear_qkv.weight",
        f"{_KEYS} hidden",
    ),
    "model.layers.{layer}.self_attn.v_proj.weight": (
        f"{_ATTENTION}linear_qkv.weight",
        f"{_VALUES} hidden",
    ),
    "model.layers.{layer}.self_attn.o_proj.weight": (
        f"{_ATTENTION}linear_proj.weight",
        "hidden (kv_group query_head head_dim)",
    ),
    "model.layers.{layer}.post_attention_layernorm.weight": (
        f"{_MLP}linear_fc1.layer_norm_weight",
        "hidden",
    ),
    "model.layers.{layer}.mlp.gate_proj.weight": (f"{_MLP}linear_fc1.weight", "(gate ffn) hidden"),
    "model.layers.{layer}.mlp.up_proj.weight": (f"{_MLP}linear_fc1.weight", "(up ffn) hidden"),
    "model.layers.{layer}.mlp.down_proj.weight": (f"{_MLP}linear_fc2.weight", "hidden ffn"),
    "model.norm.weight": ("decoder.final_layernorm.weight", "hidden"),
    "lm_head.weight": ("output_layer.weight", "vocab hidden"),
}
QWEN2: Rows = {
    **LLAMA,
    "model.layers.{layer}.self_attn.q_proj.bias": (f"{_ATTENTION}linear_qkv.bias", _QUERIES),
    "model.layers.{layer}.self_attn.k_proj.bias": (f"{_ATTENTION}linear_qkv.bias", _KEYS),
    "model.layers.{layer}.self_attn.v_proj.bias": (f"{_ATTENTION}linear_qkv.bias", _VALUES),
}
QWEN3: Rows = {
    **LLAMA,
    "model.layers.{layer}.self_attn.q_norm.weight": (
        f"{_ATTENTION}q_layernorm.weight",
        "head_dim",
    ),
    "model.layers.{layer}.self_attn.k_norm.weight": (
        f"{_ATTENTION}k_layernorm.weight",
        "head_dim",
    ),
}


def regions(rows: Rows, model: ModelConfig) -> Iterator[Region]:
    """Where the tensors of a model are stored: those it has once, then layer by layer.

    Rows of tensors that the model does not have (the head of a tied one) give nothing.
    """
    tensors, parts = logical_tensors(model), _parts_of_axes(model)
    rows = {name: row for name, row in rows.items() if row[0] in tensors}
    for name, (key, pattern) in rows.items():
        if not tensors[key].stacked:
            yield _region(name, tensors[key], pattern, parts)
    for layer in range(model.num_layers):
        for name, (key, pattern) in rows.items():
            if tensors[key].stacked:
                yield _region(name.format(layer=layer), tensors[key], pattern, parts, layer)


Parts = dict[str, tuple[str, tuple[int, int]]]
"""By the name of a part: the axis, and its range there."""


def _parts_of_axes(model: ModelConfig) -> Parts:
    queries = model.num_attention_heads // model.query_groups
    return {
        "query": ("qkv_head", (0, queries)),
        "key": ("qkv_head", (queries, queries + 1)),
        "value": ("qkv_head", (queries + 1, queries + 2)),
        "gate": ("gate_up", (0, 1)),
        "up": ("gate_up", (1, 2)),
    }


def _region(
    name: str, tensor: LogicalTensor, pattern: str, parts: Parts, layer: int | None = None
) -> Region:
    box, order, groups = list(full(tensor.shape)), [], []
    for dimension in re.findall(r"\([^)]*\)|\w+", pattern):
        labels = re.findall(r"\w+", dimension)
        for label in labels:
            axis = tensor.axis(parts[label][0] if label in parts else label)
            if label in parts:
                box[axis] = parts[label][1]
            order.append(axis)
        groups.append(len(labels))
    if layer is not None:
        box[0] = (layer, layer + 1)
        order.insert(0, 0)
        groups[0] += 1
    return Region(name, tensor.key, tuple(box), tuple(order), tuple(groups))
