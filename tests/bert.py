"""A small BERT for tests, and samples for it that have nothing to do with a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from tests.toy import MODEL, shares

BERT = replace(MODEL, architecture="bert", num_query_groups=None)
MOST_MASKED = 4
"""Slots of masked tokens in a sample."""


def bert(model: ModelConfig = BERT, **options: Any) -> ModelConfig:
    """``model`` with other options."""
    return replace(model, options={**model.options, **options})


def samples(step: int, vocab: int, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Global batch of ``step``: random tokens with some structure, most samples of two sentences.

    Samples have from half of ``length`` to all of it, and from 1 to all slots of masked tokens.
    """
    generator = torch.Generator().manual_seed(step)

    def draw(low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=generator)

    used = draw(length // 2, length + 1, batch, 1)
    first = draw(2, length // 2, batch, 1)
    place = torch.arange(length)
    masked = draw(1, MOST_MASKED + 1, batch, 1)
    slots = torch.arange(MOST_MASKED) < masked
    order = torch.rand(batch, length, generator=generator)
    order[(place == 0) | (place >= used)] = 2.0  # the first token and padding are never masked
    chosen = order.argsort(1)[:, :MOST_MASKED].masked_fill(~slots, length).sort(1).values
    return {
        "tokens": draw(0, vocab // 4, batch, length) * 3,
        "token_types": ((place >= first) & (place < used)).long(),
        "padding_mask": place >= used,
        "masked_positions": chosen.masked_fill(~slots, 0),
        "masked_labels": (draw(0, vocab // 4, batch, MOST_MASKED) * 3).masked_fill(~slots, 0),
        "masked_weights": slots.float(),
        "is_next": draw(0, 2, batch),
    }


def micro_batches(config: RunConfig, first_step: int) -> Iterator[dict[str, torch.Tensor]]:
    """This data-parallel rank's share of :func:`samples`, micro-batch by micro-batch."""
    return shares(config, first_step, samples)
