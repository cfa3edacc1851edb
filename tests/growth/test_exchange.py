"""What travels between ranks in a growth, and when."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_grow.growth import budget, exchange, in_memory
from megatron_grow.state.boxes import slices
from megatron_grow.state.piece import Piece
from tests.distributed import run_ranks
from tests.state.snapshot import Part, assemble, snapshot
from tests.toy import begin, grow, grown_run, layout, plan_of

WORLD = 4
BUDGET = 1 << 11
"""Values in and out in one of many rounds."""
RUN = grown_run(layout(), layout(tp=2, pp=2), source_layers=2, depth="copying_stack", until=1)
"""From an optimizer state cut over four ranks; four layers, each drawn twice."""


class Seen:
    """All-to-alls of values: how many, and the most bytes that went in and came out."""

    def __init__(self) -> None:
        self.count = self.most = 0
        send = dist.all_to_all_single

        def counted(out: torch.Tensor, given: torch.Tensor, *sizes: Any) -> Any:
            self.count += 1
            self.most = max(self.most, out.nbytes + given.nbytes)
            return send(out, given, *sizes)

        in_memory.dist.all_to_all_single = counted  # type: ignore[assignment]


def wanted(source: list[Piece], target: list[Piece]) -> int:
    """Bytes of the source that this rank's target is made of and that it does not hold.

    Layer l of the target is layer l % 2 of the source (copying_stack); all else is as it was.
    """
    whole = {key: tensor.shape for key, tensor in plan_of(RUN, WORLD, 1).tensors.items()}

    def marked(pieces: list[Piece], layers: int | None) -> dict[tuple[str, str], np.ndarray]:
        marks: dict[tuple[str, str], np.ndarray] = {}
        for piece in pieces:
            shape = whole[piece.key]
            mark = marks.setdefault((piece.key, piece.kind), np.zeros(shape, bool))
            box = piece.box
            if "layers" in piece.key and layers:
                ((layer, _), *rest) = box
                box = ((layer % layers, layer % layers + 1), *rest)
            mark[slices(box)] = True
        return marks

    have, need = marked(source, None), marked(target, 2)
    return 4 * sum(
        int((mark & ~have[where]).sum()) if where in have else int(mark.sum())
        for where, mark in need.items()
    )


def on_a_rank(part: int | None) -> tuple[list[Part], int, int, tuple[int, int, int]]:
    """The grown state; bytes received and those that were wanted; all-to-alls before and in it."""
    if part is not None:
        exchange._PART = budget._LEAST = budget._MOST = part  # type: ignore[misc]
    seen = Seen()
    live = begin(RUN, WORLD)
    at_start = seen.count
    for piece in live.pieces():
        piece.data.copy_(torch.arange(piece.data.numel()).view(piece.data.shape) % 251)
    source, transfer = live.pieces(), in_memory.transfer
    found: list[int] = []

    def measured(plan: Any, source: list[Piece], target: list[Piece]) -> int:
        found.extend((transfer(plan, source, target), wanted(source, target)))
        return found[0]

    from megatron_grow.growth import filling

    filling.transfer = measured  # type: ignore[assignment]
    del source
    grown = grow(live, RUN, WORLD)
    return snapshot(grown.pieces()), found[0], found[1], (at_start, seen.count, seen.most)


@pytest.fixture(scope="module")
def once() -> list:
    return run_ranks(WORLD, on_a_rank, None)


@pytest.fixture(scope="module")
def in_rounds() -> list:
    return run_ranks(WORLD, on_a_rank, BUDGET)


def test_a_start_from_nothing_exchanges_nothing(once: list) -> None:
    # two of sizes and requests at most; here not even these
    assert [counts[0] for *_, counts in once] == [0] * WORLD


def test_a_rank_gets_what_it_must_own_and_does_not_have_once(once: list) -> None:
    for _, received, needed, _ in once:
        assert received == needed > 0


def test_many_rounds_give_the_same_bits(once: list, in_rounds: list) -> None:
    tensors = plan_of(RUN, WORLD, 1).tensors
    one, many = (assemble(tensors, [rank[0] for rank in ranks]) for ranks in (once, in_rounds))
    assert one.keys() == many.keys()
    for key, values in one.items():
        assert np.array_equal(values, many[key]), key
    # sizes of the requests and these; then rounds for what comes and goes at the fullest rank
    fullest = max(counts[2] for *_, counts in once)
    rounds = ceil(fullest / 4 / BUDGET)
    assert [counts[1] for *_, counts in in_rounds] == [2 + rounds] * WORLD
    assert rounds > 10


def test_a_round_holds_no_more_than_its_budget(in_rounds: list) -> None:
    # about: what a rank makes at once is not cut in two
    assert max(counts[2] for *_, counts in in_rounds) <= 3 * 4 * BUDGET
