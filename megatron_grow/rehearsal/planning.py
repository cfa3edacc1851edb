"""What planning a growth costs a rank of a job of any size, and what travels to it.

One process stands for one rank after another. What the other ranks would tell it is computed.
"""

from __future__ import annotations

import pickle
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rich.filesize import decimal
from rich.table import Table

from megatron_grow.config.run import RunConfig, parse_run
from megatron_grow.config.stages import Stage
from megatron_grow.cost.peak import growth_peak
from megatron_grow.cost.step import Placement
from megatron_grow.growth.budget import budget
from megatron_grow.growth.exchange import needs
from megatron_grow.growth.holders import Holders, holdings
from megatron_grow.growth.plan import Plan
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.parametrization.table import parametrized
from megatron_grow.rehearsal.data import vocab_size
from megatron_grow.rehearsal.holding import Holding
from megatron_grow.state.boxes import Box, subtract, union, volume
from megatron_grow.state.materialise import sources
from megatron_grow.state.piece import Piece
from megatron_grow.train.preflight import growth_plans

_BYTES = 4
"""Of a value: state is fp32."""


@dataclass(frozen=True)
class Planned:
    """A growth, as one rank plans it."""

    stage: int
    """That is grown to."""
    rank: int
    seconds: float
    """To read what all ranks hold, and to find what this one needs of whom."""
    told: int
    """Bytes that all ranks tell of what they hold."""
    requests: int
    """Slices that it asks for."""
    asks: int
    """Ranks that it asks."""
    received: int
    """Bytes that it gets."""
    bound: int
    """Bytes that it must own and does not: no plan gets by with less."""
    rounds: int
    """That it needs for what it gets, sending as much."""
    memory: int
    """Bytes on its device at the growth's fullest moment, by formula."""
    resident: int
    """Bytes of the new stage that stay."""


def plan_growths(argv: list[str], world_size: int, ranks: Sequence[int]) -> list[Planned]:
    """How each of ``ranks`` plans the growths of a command line of ``pretrain_progressive.py``.

    Raises:
        UserError: a run that cannot work.
    """
    read = parse_run(argv)
    config = parametrized(replace(read, model=replace(read.model, vocab_size=vocab_size(read))))
    stages = config.resolve(world_size)
    return [
        planned
        for (before, after), plan in zip(
            pairwise(stages), growth_plans(config, stages), strict=True
        )
        for planned in plan_growth(config, before, after, plan, world_size, ranks)
    ]


def plan_growth(
    config: RunConfig,
    before: Stage,
    after: Stage,
    plan: Plan,
    world_size: int,
    ranks: Iterable[int],
) -> list[Planned]:
    """How each of ``ranks`` plans the growth from one stage to the next."""
    old, new = (placement(config, stage, world_size) for stage in (before, after))
    source, target = Holding(old), Holding(new)
    messages = [pickle.dumps(holdings(source.of(rank))) for rank in range(world_size)]
    most = budget(plan.tensors.values())
    found = []
    for rank in ranks:
        pieces, had = target.of(rank), source.of(rank)
        began = time.perf_counter()
        holders = Holders([pickle.loads(message) for message in messages], rank)
        needed = needs(plan, pieces, holders)
        seconds = time.perf_counter() - began
        slices = [part for of in needed.requests for part in dict.fromkeys(p for _, p in of)]
        received = sum(volume(part.box) for part in slices)
        states = new.states[target.pipeline_rank(rank)]
        found.append(
            Planned(
                stage=after.index,
                rank=rank,
                seconds=seconds,
                told=sum(map(len, messages)),
                requests=len(slices),
                asks=sum(map(bool, needed.requests)),
                received=_BYTES * received,
                bound=_BYTES * lower_bound(plan, had, pieces),
                rounds=-(-2 * received // most),
                memory=growth_peak(
                    old.states[source.pipeline_rank(rank)],
                    states,
                    shares_state=new.shares_state,
                    exchanged=_BYTES * min(2 * received, most),
                ),
                resident=states.total,
            )
        )
    return found


def placement(config: RunConfig, stage: Stage, world_size: int) -> Placement:
    """A stage of a run on the ranks of a job."""
    optimizer, precision = optimizer_of(config.optimizer), config.train.precision
    return Placement(stage.model, stage.parallel, world_size, precision, optimizer)


def table(found: Sequence[Planned]) -> Table:
    """For people."""
    columns = ("stage", "rank", "planning", "told by all", "asks", "slices", "received")
    rows = Table(*columns, "must own and lacks", "rounds", "peak", "stays")
    for each in found:
        rows.add_row(
            str(each.stage),
            str(each.rank),
            f"{each.seconds:.2f} s",
            decimal(each.told),
            f"{each.asks} ranks",
            str(each.requests),
            decimal(each.received),
            decimal(each.bound),
            str(each.rounds),
            decimal(each.memory),
            decimal(each.resident),
        )
    return rows


def lower_bound(plan: Plan, source: Sequence[Piece], target: Sequence[Piece]) -> int:
    """Values that a rank's new pieces draw on and that it does not hold."""
    wanted: dict[tuple[str, str], set[Box]] = defaultdict(set)
    for piece in target:
        for key, box in sources(plan.map(piece.key, piece.kind), piece.box):
            wanted[key, piece.kind].add(box)
    held: dict[tuple[str, str], list[Box]] = defaultdict(list)
    for piece in source:
        held[piece.key, piece.kind].append(piece.box)
    missing = 0
    for where, boxes in wanted.items():
        rest = union(boxes)
        for own in held[where]:
            rest = [part for box in rest for part in subtract(box, own)]
        missing += sum(map(volume, rest))
    return missing
