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
        text = (batch[name][sample][real][None] for name in ("tokens", "token_types"))
        said = bert_reference.logits(
            model,
            weights,
            bert_reference.Text(*text, padding=torch.zeros(1, 1, dtype=torch.bool)),
            places=groups(int(real.sum()), masked, pool_size),
        )
        labels, is_next = batch["masked_labels"][sample][used], batch["is_next"][sample]
        tokens = said.tokens[0, 1 : 1 + len(masked)]
        masked_lm.append(functional.cross_entropy(tokens, labels, reduction="sum"))
        sentences.append(functional.cross_entropy(said.sentence[0], is_next))
    return torch.stack(masked_lm).sum() / count + torch.stack(sentences).mean()
