"""The entropy of attention: that of a plain softmax over all scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.model.layers.entropy import attention_entropy
from megatron_grow.parallel import process_groups
from tests.distributed import run_ranks

LENGTH, BATCH, GROUPS, PER_GROUP, SIZE = 48, 2, 2, 3, 8
QUERIES = range(2, LENGTH, 3)
"""16 of 48."""
Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, dict[str, Any]]


def case(causal: bool, scale: float | None = None, padding: int = 0) -> Case:
    draw = torch.Generator().manual_seed(5)
    query = 2 * torch.randn(LENGTH, BATCH, GROUPS * PER_GROUP, SIZE, generator=draw)
    key = torch.randn(LENGTH, BATCH, GROUPS, SIZE, generator=draw)
    attended = torch.ones(BATCH, 1, 1, LENGTH, dtype=torch.bool)
    attended[1, ..., LENGTH - padding :] = False
    return query, key, attended if padding else None, {"causal": causal, "scale": scale}


CASES = {
    "causal": case(True),
    "scaled": case(True, scale=0.7),
    "to all but padding": case(False, padding=7),
}


def by_hand(query: Any, key: Any, attended: Any, causal: bool, scale: float | None) -> np.ndarray:
    """(batch, groups, heads of each, queries), one distribution after another."""
    found = np.zeros((BATCH, GROUPS, PER_GROUP, len(QUERIES)))
    for b, g, h in np.ndindex(*found.shape[:3]):
        for n, place in enumerate(QUERIES):
            seen = [
                t
                for t in range(LENGTH)
                if (t <= place or not causal) and (attended is None or attended[b, 0, 0, t])
            ]
            asks = query[place, b, g * PER_GROUP + h].double().numpy()
            scores = [asks @ key[t, b, g].double().numpy() * (scale or SIZE**-0.5) for t in seen]
            shares = np.exp(scores) / np.exp(scores).sum()
            found[b, g, h, n] = -(shares * np.log(shares)).sum()
    return found


def entropies(parts: list[list[int]]) -> dict[str, torch.Tensor]:
    """On a context-parallel rank, which has ``parts[rank]`` of each sequence."""
    layout = ParallelConfig(context_parallel_size=len(parts), use_distributed_optimizer=False)
    process_groups.set_up(layout, seed=1)
    mine = parts[dist.get_rank()]
    return {
        name: attention_entropy(query[mine], key[mine], attended, **options)
        for name, (query, key, attended, options) in CASES.items()
        if options["causal"] or len(parts) == 1
    }


@pytest.fixture(scope="module")
def alone() -> dict[str, torch.Tensor]:
    return run_ranks(1, entropies, [[*range(LENGTH)]])[0]


@pytest.mark.parametrize("name", CASES)
def test_it_is_that_of_a_plain_softmax(alone: dict[str, torch.Tensor], name: str) -> None:
    query, key, attended, options = CASES[name]
    expected = by_hand(query, key, attended, **options)
    assert alone[name].numpy() == pytest.approx(expected, abs=1e-5)
    assert expected.min() < 1 < expected.max(), "neither even nor all on one token"


def test_ranks_that_share_a_sequence_find_the_same(alone: dict[str, torch.Tensor]) -> None:
    quarter = LENGTH // 4  # each has a part from the front and one from the back, as for training
    front, *middle, back = ([*range(i, i + quarter)] for i in range(0, LENGTH, quarter))
    ranks = run_ranks(2, entropies, [front + back, middle[0] + middle[1]])
    for name in ("causal", "scaled"):
        first, second = (rank[name] for rank in ranks)
        outer = first.shape[-1] // 2
        together = torch.cat([first[..., :outer], second, first[..., outer:]], dim=-1)
        assert together.numpy() == pytest.approx(alone[name].numpy(), abs=1e-6)
