"""Apply a plan between two live models: each rank receives the slices that it needs, no more.

Values move in rounds (:mod:`.exchange`), so that beside the source and the target a rank never
holds more than about one layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.distributed as dist

from megatron_grow.growth.answers import of_pieces
from megatron_grow.growth.exchange import Round, Task, plan_exchange
from megatron_grow.growth.holders import Slice
from megatron_grow.growth.plan import Plan
from megatron_grow.parallel import cpu
from megatron_grow.state.boxes import Box, intersect, shape_of, slices, volume
from megatron_grow.state.materialise import materialise
from megatron_grow.state.piece import Piece

_Held = Mapping[tuple[str, str, Box], torch.Tensor]
"""What this rank holds of the source, by key, kind and box of a piece."""


def transfer(plan: Plan, source: Sequence[Piece], target: Sequence[Piece]) -> int:
    """Fill ``target`` from ``source`` by ``plan``; every rank of the job takes part.

    Args:
        plan: the maps.
        source: what this rank holds of the old state; empty for a first initialisation.
        target: what this rank must hold of the new one; written to.

    Returns:
        Bytes that this rank received from others.
    """
    plan = plan.answered(partial(of_pieces, source))
    exchange = plan_exchange(plan, source, target)
    held = {(piece.key, piece.kind, piece.box): piece.data for piece in source}
    for task in exchange.alone:
        _make(plan, task, held, {})
    received = 0
    for round_ in exchange.rounds:
        values, count = _exchange(round_, held)
        received += count
        for task in round_.tasks:
            _make(plan, task, held, values)
    return received


def _exchange(round_: Round, held: _Held) -> tuple[dict[Slice, torch.Tensor], int]:
    """Send what others asked for in this round and receive what this rank's tasks need."""
    send_sizes, receive_sizes = (
        [sum(volume(part.box) for part in parts) for parts in by_rank]
        for by_rank in (round_.asked, round_.wanted)
    )
    outgoing = torch.empty(sum(send_sizes), device=cpu.device())
    incoming = torch.empty(sum(receive_sizes), device=cpu.device())
    done = 0
    for parts in round_.asked:
        for part in parts:
            sent = _values(part, held, part.box)
            outgoing[done : done + sent.numel()].view(sent.shape).copy_(sent)
            done += sent.numel()
    dist.all_to_all_single(incoming, outgoing, receive_sizes, send_sizes)
    values: dict[Slice, torch.Tensor] = {}
    done = 0
    for parts in round_.wanted:
        for part in parts:
            count = volume(part.box)
            values[part] = incoming[done : done + count].view(shape_of(part.box))
            done += count
    return values, incoming.numel() * incoming.element_size()


def _values(part: Slice, held: _Held, box: Box) -> torch.Tensor:
    """What this rank holds in ``box`` of the piece that ``part`` is of."""
    return held[part.key, part.kind, part.held][slices(box, part.held)]


def _make(plan: Plan, task: Task, held: _Held, received: Mapping[Slice, torch.Tensor]) -> None:
    def read(key: str, kind: str, box: Box) -> torch.Tensor:  # all that is asked for is of one kind
        parts = []
        for part in task.needs:
            common = intersect(part.box, box) if part.key == key else None
            if common is None:
                continue
            if part in received:
                values = received[part][slices(common, part.box)]
            else:
                values = _values(part, held, common)
            if common == box:
                return values
            parts.append((common, values))
        whole = torch.empty(shape_of(box), device=task.target.data.device)
        for common, values in parts:
            whole[slices(common, box)] = values
        return whole

    target = task.target
    out = target.data[slices(task.box, target.box)]
    tensor_map = plan.map(target.key, target.kind)
    materialise(tensor_map, target.kind, task.box, read, plan.seed, out)
