"""Plans what ranks send to each other in a growth: who, what, and in which round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_grow.growth.budget import budget
from megatron_grow.growth.holders import Holders, Slice, holdings
from megatron_grow.growth.plan import Plan
from megatron_grow.parallel.agreement import gather, place, reduced, swapped
from megatron_grow.state.boxes import Box, split, volume
from megatron_grow.state.materialise import sources
from megatron_grow.state.piece import Piece

_PART = 1 << 20
"""Values of a target piece that are made at once where they draw on others."""
_FRESH_PART = 1 << 24
"""Where they draw on nothing: fresh values come in tiles, which small parts would cut."""


@dataclass(frozen=True)
class Task:
    """A part of a target piece, made at once."""

    target: Piece
    box: Box
    needs: tuple[Slice, ...] = ()


@dataclass(frozen=True)
class Needs:
    """What a rank makes, and what it needs for that."""

    alone: list[Task]
    """Made of what it holds itself, or of nothing."""
    groups: list[list[Task]]
    """Made of the same slices of others: layers that are copies, say."""
    requests: list[list[tuple[int, Slice]]]
    """To each rank: a group's number and a slice."""


@dataclass(frozen=True)
class Round:
    """What a rank does in one of them."""

    tasks: list[Task]
    wanted: list[list[Slice]]
    """From each rank, each slice once."""
    asked: list[list[Slice]]
    """By each rank, of this one."""


@dataclass(frozen=True)
class Exchange:
    """All that a rank does."""

    alone: list[Task]
    rounds: list[Round]
    """In which all ranks send and receive; none where nobody needs anything of others."""


def plan_exchange(plan: Plan, source: Sequence[Piece], target: Sequence[Piece]) -> Exchange:
    """What this rank does to fill ``target``; every rank of the job takes part.

    All ranks first tell each other what they hold. Each then finds, for every piece of its new
    state, which source slices it takes and from whom, and asks those alone.
    """
    rank, world = place()
    held = gather(holdings(source))
    needed = needs(plan, target, Holders(held, rank))
    if world == 1 or not any(held):
        return Exchange(needed.alone, [])
    asked = swapped(needed.requests)
    both = (*needed.requests, *asked)
    traffic = sum(volume(part.box) for requests in both for _, part in requests)
    most = int(reduced(torch.tensor(traffic), "max"))
    rounds = -(-most // budget(plan.tensors.values()))
    return Exchange(
        needed.alone,
        [
            Round(
                [task for group in needed.groups[number::rounds] for task in group],
                _of_round(needed.requests, number, rounds),
                _of_round(asked, number, rounds),
            )
            for number in range(rounds)
        ],
    )


def needs(plan: Plan, target: Sequence[Piece], holders: Holders) -> Needs:
    """How the rank that ``holders`` answers fills ``target``."""
    alone: list[Task] = []
    groups: dict[tuple[Slice, ...], list[Task]] = {}
    for piece in target:
        for task in _tasks(plan, piece, holders):
            remote = tuple(part for part in task.needs if part.holder != holders.rank)
            (groups.setdefault(remote, []) if remote else alone).append(task)
    requests: list[list[tuple[int, Slice]]] = [[] for _ in range(holders.world)]
    for number, remote in enumerate(groups):
        for part in remote:
            requests[part.holder].append((number, part))
    return Needs(alone, [*groups.values()], requests)


def _tasks(plan: Plan, piece: Piece, holders: Holders) -> list[Task]:
    tensor_map = plan.map(piece.key, piece.kind)
    if not sources(tensor_map, piece.box):
        return [Task(piece, box) for box in split(piece.box, _FRESH_PART)]
    return [
        Task(
            piece,
            box,
            tuple(
                part
                for key, wanted in sources(tensor_map, box)
                for part in holders.find(key, piece.kind, wanted)
            ),
        )
        for box in split(piece.box, _PART)
    ]


def _of_round(
    requests: Sequence[Sequence[tuple[int, Slice]]], number: int, rounds: int
) -> list[list[Slice]]:
    """Those of round ``number``; a rank deals the groups that it makes into rounds like cards."""
    return [
        [*dict.fromkeys(part for group, part in its if group % rounds == number)]
        for its in requests
    ]
