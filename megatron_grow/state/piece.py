"""A part of a tensor's state where it lives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_grow.state.boxes import Box


@dataclass(frozen=True)
class Piece:
    """A box of one logical tensor's state, and the memory that holds it on this rank."""

    key: str
    kind: str
    """``main_param`` or the name of an optimizer moment."""
    box: Box
    data: torch.Tensor
    """Of the box's shape; writing to it changes the live state."""
    owned: bool
    """Over all ranks, the owned pieces of a tensor tile it; other pieces are replicas."""
