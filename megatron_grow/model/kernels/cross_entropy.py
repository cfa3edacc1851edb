"""The softmax of the loss, compiled."""

from __future__ import annotations

import torch

from megatron_grow.model.kernels.compiling import compiled
from megatron_grow.model.layers.vocabulary import PaddedVocabulary


def fuse(module: torch.nn.Module) -> None:
    """Let a language model's loss use it."""
    if isinstance(module, PaddedVocabulary):
        module.softmax = softmax_


@compiled
def softmax_(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`.layers.cross_entropy.softmax_`: no block of rows is ever in memory."""
    logits = rows.float()
    top = logits.amax(1, keepdim=True)
    exp = (logits - top).exp()
    total = exp.sum(1, keepdim=True)
    rows.copy_(exp / total)
    return top.squeeze(1), total.squeeze(1)
