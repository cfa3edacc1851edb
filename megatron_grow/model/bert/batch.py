"""What a BERT trains on: samples with masked tokens, and how a batch of them becomes losses."""

from __future__ import annotations

import torch


def logits(chunk: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Of all tokens, (batch, length, vocabulary), none of them padding."""
    types = torch.zeros_like(tokens)
    found, *_ = chunk(tokens, types, types.bool())
    return found.transpose(0, 1)
