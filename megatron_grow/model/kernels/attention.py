"""Which of torch's attention kernels are tried, in order."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend

from megatron_grow.model.layers.attention import ScaledDotProductAttention

_FASTEST_FIRST = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


def fuse(module: torch.nn.Module) -> None:
    """Let attention of ours try cuDNN's before flash attention."""
    if isinstance(module, ScaledDotProductAttention):
        module.backends = _FASTEST_FIRST
