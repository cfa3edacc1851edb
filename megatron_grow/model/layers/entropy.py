"""How far attention spreads, without changing how it is computed."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state

QUERIES = 16
"""So many of a sequence are looked at, less than twice as many where it is no multiple."""


def attention_entropy(
    query: torch.Tensor,
    key: torch.Tensor,
    attended: torch.Tensor | None,
    *,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Entropies of the attention of queries at an even distance from each other, in nats.

    0 is attention to one token, log(t) even attention to t of them. The queries are the same on
    every layout.

    Args:
        query: (sequence, batch, query heads of this rank, head size).
        key: (tokens, batch, key/value heads of this rank, head size).
        attended: (batch, 1, 1, tokens) bool, which tokens are attended to; None: all of them.
        causal: whether a query attends to no later token. Ranks may then share the sequence.
        scale: of the scores; None: one over the root of the head size.

    Returns:
        (batch, key/value heads, query heads of each, queries).
    """
    places, size = _places(len(query)), len(query) * _ranks()
    every = max(1, size // QUERIES)
    chosen = (places[_rank()] + 1) % every == 0
    index = chosen.nonzero().squeeze(1)  # of a mask the device would have to tell how many it has
    queries = (
        query[index.to(query.device, non_blocking=True)].float().unflatten(2, (key.shape[2], -1))
    )
    scores = torch.einsum("nbgqd,tbgd->bgqnt", queries, _whole(key).float())
    scores *= query.shape[-1] ** -0.5 if scale is None else scale
    if causal:
        later = places.flatten() > places[_rank()][chosen][:, None]
        scores.masked_fill_(later.to(scores.device, non_blocking=True), -torch.inf)
    if attended is not None:
        scores.masked_fill_(~attended[:, :, None], -torch.inf)
    return torch.special.entr(scores.softmax(-1)).sum(-1)


def _places(length: int) -> torch.Tensor:
    """Which tokens of a sequence each context-parallel rank has, (ranks, length).

    Of twice as many parts as there are ranks, each has one from the front and one from the back.
    """
    ranks = _ranks()
    if ranks == 1:
        return torch.arange(length)[None]
    parts = torch.arange(length * ranks).view(2 * ranks, -1)
    return torch.cat([parts[:ranks], parts[ranks:].flip(0)], dim=1)


def _whole(key: torch.Tensor) -> torch.Tensor:
    """Keys of all tokens of a sequence, in the order of :func:`_places`."""
    if _ranks() == 1:
        return key
    found = [torch.empty_like(key) for _ in range(_ranks())]
    dist.all_gather(found, key.contiguous(), group=parallel_state.get_context_parallel_group())
    return torch.cat(found)


def _ranks() -> int:
    return parallel_state.get_context_parallel_world_size()


def _rank() -> int:
    return parallel_state.get_context_parallel_rank()
