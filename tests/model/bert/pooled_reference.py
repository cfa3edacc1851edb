"""A BERT whose tokens share places, one sample at a time, without padding and without masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from megatron_grow.config.model import ModelConfig
from tests.model.reference import Weights, feed_forward, layer_of, linear, norm


def groups(length: int, masked: Sequence[int], pool_size: int) -> list[list[int]]:
    """The tokens of each place: the first, each masked one, and the others by ``pool_size``."""
    rest = [token for token in range(1, length) if token not in masked]
    shared = [rest[i : i + pool_size] for i in range(0, len(rest), pool_size)]
    return [[0], *([token] for token in masked), *shared]


def loss(
    model: ModelConfig, weights: Weights, batch: dict[str, torch.Tensor], pool_size: int
) -> torch.Tensor:
    """Of a global batch, as a BERT reads it: the mean over masked tokens and that over samples."""
    masked_lm, sentences, count = [], [], int(batch["masked_weights"].sum())
    for sample in range(len(batch["tokens"])):
        real = ~batch["padding_mask"][sample]
        used = batch["masked_weights"][sample] > 0
        tokens, sentence = logits(
            model,
            weights,
            batch["tokens"][sample][real],
            batch["token_types"][sample][real],
            batch["masked_positions"][sample][used].tolist(),
            pool_size,
        )
        labels, is_next = batch["masked_labels"][sample][used], batch["is_next"][sample]
        masked_lm.append(functional.cross_entropy(tokens, labels, reduction="sum"))
        sentences.append(functional.cross_entropy(sentence, is_next))
    return torch.stack(masked_lm).sum() / count + torch.stack(sentences).mean()


def logits(
    model: ModelConfig,
    weights: Weights,
    tokens: torch.Tensor,
    types: torch.Tensor,
    masked: Sequence[int],
    pool_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the masked tokens, (masked, vocabulary), and of the two sentence classes, (2,).

    Tokens and types are those of one sample, (length,), none of them padding.
    """
    post = "embedding.embedding_dropout.0.weight" in weights
    x = weights["embedding.word_embeddings.weight"][tokens]
    x = x + weights["embedding.position_embeddings.weight"][: len(tokens)]
    x = x + weights["embedding.tokentype_embeddings.weight"][types]
    if post:
        x = norm(model, weights, "embedding.embedding_dropout.0", x)
    for layer in range(model.num_layers):
        mine = layer_of(weights, "encoder.layers.", layer)
        read = x if post else norm(model, mine, "self_attention.linear_qkv.layer_norm", x)
        asking = read
        if layer == 0:
            places = groups(len(tokens), masked, pool_size)
            x, asking = (torch.stack([y[place].mean(0) for place in places]) for y in (x, read))
        x = x + _attention(model, mine, asking, read)
        x = norm(model, mine, "self_attn_bda.norm", x) if post else x
        normed = x if post else norm(model, mine, "mlp.linear_fc1.layer_norm", x)
        x = x + feed_forward(model, mine, "mlp", normed)
        x = norm(model, mine, "mlp_bda.norm", x) if post else x
    if not post:
        x = norm(model, weights, "encoder.final_layernorm", x)
    sentence = linear(weights, "binary_head", linear(weights, "pooler.dense", x[0]).tanh())
    guess = functional.gelu(linear(weights, "lm_head.dense", x[1 : 1 + len(masked)]))
    guess = norm(model, weights, "lm_head.layer_norm", guess)
    head = weights["embedding.word_embeddings.weight"]
    return guess @ head.T + weights["output_layer.bias"], sentence


def _attention(
    model: ModelConfig, weights: Weights, asking: torch.Tensor, read: torch.Tensor
) -> torch.Tensor:
    """Of ``asking``, (places, hidden size), to ``read``, (tokens, hidden size)."""
    size, heads = model.head_dim, []
    weight, bias = (
        weights[f"self_attention.linear_qkv.{end}"].unflatten(0, (-1, 3, size))
        for end in ("weight", "bias")
    )
    for head in range(model.num_attention_heads):
        query = asking @ weight[head, 0].T + bias[head, 0]
        key, value = (read @ weight[head, part].T + bias[head, part] for part in (1, 2))
        heads.append((query @ key.T / size**0.5).softmax(-1) @ value)
    return linear(weights, "self_attention.linear_proj", torch.cat(heads, -1))
