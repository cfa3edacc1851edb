"""How tokens share the places of a shorter network (CompoundGrow, Gu et al. 2020).

The first token and the masked ones keep a place each. Of the others, in their order, every
``pool_size`` share one, as if the masked ones were not there between them. Padding has none.
"""

from __future__ import annotations

import torch


def places_of(
    padding_mask: torch.Tensor, masked_positions: torch.Tensor, pool_size: int, length: int
) -> torch.Tensor:
    """Which tokens each place holds.

    The first token has place 0, the masked ones those that follow, in their order.

    Args:
        padding_mask: (batch, tokens) bool, True where there is none.
        masked_positions: (batch, most masked tokens), rising; unused ones are 0, and come last.
        pool_size: tokens that share a place.
        length: places, as :func:`.lengths.pooled_length` says.

    Returns:
        (batch, places, tokens) bool.
    """
    kept = torch.zeros_like(padding_mask).scatter_(1, masked_positions, True)
    kept[:, 0] = True
    others = ~(kept | padding_mask)
    own = kept.cumsum(1) - 1
    shared = kept.sum(1, keepdim=True) + (others.cumsum(1) - 1) // pool_size
    place = own.where(kept, shared).masked_fill(padding_mask, -1)
    return place.unsqueeze(1) == torch.arange(length, device=place.device).unsqueeze(1)
