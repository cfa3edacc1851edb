"""A BERT whose tokens share places, one sample at a time, without padding and without masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from megatron_grow.config.model import ModelConfig
from tests.model import bert_reference
from tests.model.reference import Weights


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
        masked = batch["masked_positions"][sample][used].tolist()
        text = (batch[name][sample][real] for name in ("tokens", "token_types"))
        tokens, sentence = logits(model, weights, *text, masked, pool_size)
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
    text = bert_reference.Text(tokens[None], types[None], torch.zeros(1, 1, dtype=torch.bool))
    said = bert_reference.logits(
        model,
        weights,
        text,
        places=groups(len(tokens), masked, pool_size),
        predicted=slice(1, 1 + len(masked)),
    )
    assert said.sentence is not None
    return said.tokens[0], said.sentence[0]
