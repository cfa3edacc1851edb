"""What a BERT trains on: samples with masked tokens, and how a batch of them becomes losses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch.nn import functional

from megatron_grow.model.architecture import Loss
from megatron_grow.model.bert.module import Output

Batch = Mapping[str, torch.Tensor]
"""Samples, stacked: ``tokens``, ``token_types`` and ``padding_mask``, (batch, sequence);
``masked_positions``, ``masked_labels`` and ``masked_weights``, (batch, most masked tokens); and,
for a sentence head, ``is_next``, (batch,), 0 where the second sentence is in its place."""


def forward_step(chunk: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor | Output, Loss]:
    """What a chunk makes of a batch, as :meth:`.architecture.Architecture.forward_step`."""
    names = ("tokens", "token_types", "padding_mask", "masked_positions", "masked_labels")
    return chunk(*(batch[name] for name in names)), partial(_losses, batch)


def counts(batch: Batch, *, sentence_head: bool) -> dict[str, torch.Tensor]:
    """As :meth:`.architecture.Architecture.counts`."""
    found = {"masked_lm_loss": batch["masked_weights"].sum()}
    if sentence_head:
        found["sentence_loss"] = torch.tensor(float(len(batch["is_next"])))
    return found


def logits(chunk: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Of all tokens, (batch, length, vocabulary), none of them padding."""
    types = torch.zeros_like(tokens)
    found, *_ = chunk(tokens, types, types.bool())
    return found.transpose(0, 1)


def _losses(batch: Batch, output: Output) -> dict[str, torch.Tensor]:
    """Sums and counts of a micro-batch."""
    losses, hits, sentence = output
    assert hits is not None, "labels were given"
    weights = batch["masked_weights"].t()
    masked = weights.sum()
    found = {
        "masked_lm_loss": torch.stack([(losses * weights).sum(), masked]),
        "masked_lm_accuracy": torch.stack([(hits * weights).sum(), masked]),
    }
    if sentence is not None:
        sentence, right = sentence.float(), batch["is_next"]
        number = weights.new_tensor(len(right))
        loss = functional.cross_entropy(sentence, right, reduction="sum")
        hit = (sentence.argmax(1) == right).sum()
        found["sentence_loss"] = torch.stack([loss, number])
        found["sentence_accuracy"] = torch.stack([hit.float(), number])
    return found
