"""Where transformers of megatron-core's layers can be measured while they compute."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.transformer.attention import Attention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_grow.model.layers.attention import ScaledDotProductAttention
from megatron_grow.model.layers.entropy import attention_entropy
from megatron_grow.model.probes import Probe

Branch = tuple[torch.Tensor, torch.Tensor | None]
"""What a module gives, and its bias apart."""


def transformer_probes(chunk: torch.nn.Module) -> Iterator[Probe]:
    """The embedding, what each layer makes of the residual stream, what its branches give, and how
    far its attention spreads."""
    for module in chunk.modules():
        if isinstance(module, LanguageModelEmbedding):
            yield Probe("activation", "embedding", None, module, _output)
        elif isinstance(module, TransformerLayer):
            yield from _of_layer(module, module.layer_number - 1)


def _of_layer(layer: TransformerLayer, number: int) -> Iterator[Probe]:
    yield Probe("activation", "residual_stream", number, layer, _stream)
    yield Probe("activation", "mlp", number, layer.mlp, branch)
    attention = layer.self_attention
    yield Probe("activation", "attention", number, attention, branch)
    entropies = partial(_entropies, attention)
    yield Probe("entropy", "attention", number, attention.core_attention, entropies)


def _output(_: tuple, output: torch.Tensor) -> torch.Tensor:
    return output


def _stream(_: tuple, output: tuple[torch.Tensor, Any]) -> torch.Tensor:
    return output[0]


def branch(_: tuple, output: Branch) -> torch.Tensor:
    """What a module adds to the residual stream, its bias included; ``values`` of a probe."""
    values, bias = output
    return values if bias is None else values + bias


def _entropies(attention: Attention, inputs: tuple, _: torch.Tensor) -> torch.Tensor:
    query, key, _, mask = inputs
    core, attended = attention.core_attention, None
    if isinstance(core, ScaledDotProductAttention):  # Transformer Engine's is causal, and no more
        query, attended = core.reads(query, mask)
    return attention_entropy(
        query,
        key,
        attended,
        causal=attention.attn_mask_type is AttnMaskType.causal,
        scale=attention.config.softmax_scale,
    )
