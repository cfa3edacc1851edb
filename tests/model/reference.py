"""A GPT in a page of plain PyTorch, from the same weights: what megatron-core's must compute."""

from __future__ import annotations

import torch
from torch.nn import functional

from megatron_grow.config.model import ModelConfig

Weights = dict[str, torch.Tensor]
"""Logical tensors by their checkpoint keys; those of layers are stacked on axis 0."""


def losses(
    model: ModelConfig, weights: Weights, tokens: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Negative log likelihood of ``labels``; all three (batch, sequence)."""
    embedding = weights["embedding.word_embeddings.weight"]
    x = embedding[tokens]
    if model.position_embedding_type == "learned_absolute":
        x = x + weights["embedding.position_embeddings.weight"][: tokens.shape[1]]
    x = x * (model.embedding_multiplier or 1.0)
    future = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
    residual = model.residual_multiplier or 1.0
    for layer in range(model.num_layers):
        mine = layer_of(weights, "decoder.layers.", layer)
        normed = norm(model, mine, "self_attention.linear_qkv.layer_norm", x)
        branch = attention(model, mine, normed, future)
        x = x + residual * after(model, mine, "self_attn_bda.norm", branch)
        normed = norm(model, mine, "mlp.linear_fc1.layer_norm", x)
        branch = feed_forward(model, mine, "mlp", normed)
        x = x + residual * after(model, mine, "mlp_bda.norm", branch)
        if "second_norm.weight" in mine:
            normed = norm(model, mine, "second_norm", x)
            x = x + residual * feed_forward(model, mine, "second_mlp", normed)
    x = norm(model, weights, "decoder.final_layernorm", x)
    head = (
        embedding if model.share_embeddings_and_output_weights else weights["output_layer.weight"]
    )
    logits = x @ head.T / (model.logits_scaling or 1.0)
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(
        labels.shape
    )


def layer_of(weights: Weights, prefix: str, layer: int) -> Weights:
    """The weights of one layer, by their keys behind ``prefix``."""
    return {
        key.removeprefix(prefix): value[layer]
        for key, value in weights.items()
        if key.startswith(prefix)
    }


def linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def norm(model: ModelConfig, weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    join = "." if f"{name}.weight" in weights else "_"
    scale, epsilon = weights[f"{name}{join}weight"], model.layernorm_epsilon
    if model.normalization == "RMSNorm":
        return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * scale
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred * (variance + epsilon).rsqrt() * scale + weights[f"{name}{join}bias"]


def after(model: ModelConfig, weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """A norm on what a branch gives, or on its sum with the stream, where there is one."""
    return norm(model, weights, name, x) if f"{name}.weight" in weights else x


def attention(
    model: ModelConfig,
    weights: Weights,
    x: torch.Tensor,
    hidden: torch.Tensor,
    asking: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention to ``x``, (batch, sequence, hidden size), of ``asking``; of ``x`` itself if absent.

    ``hidden`` says which positions (the last axis) which others do not see; it is broadcast to
    (batch, groups, heads of each, sequence of those that ask, sequence).
    """
    groups, per_group = model.query_groups, model.num_attention_heads // model.query_groups

    def projected(x: torch.Tensor, part: slice) -> torch.Tensor:
        """(b, s, group, heads, d)."""
        rows = {
            end: values.unflatten(0, (groups, per_group + 2, -1))[:, part].flatten(0, 2)
            for end in ("weight", "bias")
            if (values := weights.get(f"self_attention.linear_qkv.{end}")) is not None
        }
        return functional.linear(x, **rows).view(*x.shape[:2], groups, -1, model.head_dim)

    query = projected(x if asking is None else asking, slice(per_group))
    key, value = projected(x, slice(per_group, None)).split(1, dim=3)
    if model.qk_layernorm:
        query = norm(model, weights, "self_attention.q_layernorm", query)
        key = norm(model, weights, "self_attention.k_layernorm", key)
    if model.position_embedding_type == "rope":
        query, key = _rotate(model, query), _rotate(model, key)
    scale = model.softmax_scale or model.head_dim**-0.5
    scores = torch.einsum("bsghd,btgxd->bghst", query, key) * scale
    weight = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    context = torch.einsum("bghst,btgxd->bsghd", weight, value)
    return linear(weights, "self_attention.linear_proj", context.flatten(2))


def _rotate(model: ModelConfig, x: torch.Tensor) -> torch.Tensor:
    """Rotary positions, halves convention; x: (b, s, group, heads, d)."""
    size = int(model.head_dim * model.rotary_percent)
    turning, still = x[..., :size], x[..., size:]
    rate = model.rotary_base ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
    if model.use_rope_scaling:
        # Llama 3.1: a wave longer than 8192 tokens turns slower by the factor, one shorter than
        # 2048 as before, and between them the two are blended by turns in 8192 tokens.
        turns = 8192 * rate / (2 * torch.pi)
        blend = ((turns - 1) / 3).clamp(0, 1)
        rate = rate * (blend + (1 - blend) / model.rope_scaling_factor)
    position = torch.arange(x.shape[1], dtype=x.dtype)
    position = position / (model.rotary_seq_len_interpolation_factor or 1.0)
    angle = position[:, None] * rate  # (s, size / 2)
    cos, sin = (f(angle)[:, None, None, :] for f in (torch.cos, torch.sin))
    first, second = turning.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([turned, still], dim=-1)


def feed_forward(model: ModelConfig, weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    x = linear(weights, f"{name}.linear_fc1", x)
    if model.activation == "swiglu":
        gate, up = x.chunk(2, dim=-1)
        x = functional.silu(gate) * up
    elif model.activation == "squared_relu":
        x = functional.relu(x).square()
    elif model.activation == "gelu_tanh":
        x = x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    else:
        x = functional.gelu(x)
    return linear(weights, f"{name}.linear_fc2", x)
