"""Apply a plan between two live models: each rank receives the slices that it needs, no more.

All ranks first tell each other what they hold. Each then finds, for every piece of its new state,
which source slices it takes and from whom, and asks for them. Values move in rounds, so that beside
the source and the target a rank never holds more than about one layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from megatron_grow.growth.answers import of_pieces
from megatron_grow.growth.plan import Plan
from megatron_grow.parallel import cpu
from megatron_grow.state.boxes import Box, full, intersect, slices, split, subtract, volume
from megatron_grow.state.materialise import materialise, sources
from megatron_grow.state.piece import Piece
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class _Slice:
    """A part of a source piece that a target needs."""

    holder: int
    """Rank that has it."""
    piece: int
    """Number of the piece among the holder's."""
    key: str
    box: Box


@dataclass(frozen=True)
class _Task:
    """A part of a target piece, made in one round."""

    target: Piece
    box: Box
    needs: tuple[_Slice, ...]


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
    rounds = _rounds(plan.tensors.values())
    tasks = _tasks(plan, target, rounds, _Holders(source))
    requests = _exchange_requests(tasks)
    received = 0
    for number in range(len(rounds)):
        mine = tasks[number]
        values, count = _exchange(mine, [asked[number] for asked in requests], source)
        received += count
        for task in mine:
            _make(plan, task, source, values)
    return received


class _Holders:
    """Who holds which part of the source state."""

    def __init__(self, source: Sequence[Piece]) -> None:
        self.rank, world = dist.get_rank(), dist.get_world_size()
        held: list[list[tuple[str, str, Box]]] = [[] for _ in range(world)]
        dist.all_gather_object(held, [(piece.key, piece.kind, piece.box) for piece in source])
        # By tensor, then by range of the first axis: pieces of other layers are never looked at.
        self._pieces: dict[tuple[str, str], dict[tuple[int, int], list[tuple[int, int, Box]]]] = (
            defaultdict(lambda: defaultdict(list))
        )
        # This rank's own pieces come first; then its neighbours', so that replicas share the load.
        for step in range(world):
            holder = (self.rank + step) % world
            for number, (key, kind, box) in enumerate(held[holder]):
                self._pieces[key, kind][box[0]].append((holder, number, box))

    def find(self, key: str, kind: str, box: Box) -> list[_Slice]:
        """Slices that tile ``box``, from as near as possible."""
        start, stop = box[0]
        near = (
            piece
            for (first, last), pieces in self._pieces[key, kind].items()
            if first < stop and start < last
            for piece in pieces
        )
        found, missing = [], [box]
        for holder, number, held in near:
            if not missing:
                break
            rest = []
            for part in missing:
                common = intersect(part, held)
                if common is None:
                    rest.append(part)
                    continue
                found.append(_Slice(holder, number, key, common))
                rest += subtract(part, common)
            missing = rest
        if missing:
            raise RuntimeError(f"no rank holds {kind} of {key} in {missing}")
        return found


def _rounds(tensors: Iterable[LogicalTensor]) -> list[list[tuple[str, Box]]]:
    """Chunks of all target tensors, dealt into rounds like cards.

    Each round is a sample of the whole model, so that all ranks have work in it, whichever layers
    and whichever parts of an embedding they hold.
    """
    tensors = list(tensors)
    layer = sum(volume(full(t.shape)) // t.shape[0] for t in tensors if t.stacked)
    # Each of a chunk's values is of three kinds and on its way twice, in what is sent and received.
    budget = max(layer // 4, 1 << 20)
    most = max(budget // dist.get_world_size(), 1 << 16)
    chunks = [(tensor.key, box) for tensor in tensors for box in split(full(tensor.shape), most)]
    total = sum(volume(box) for _, box in chunks)
    number = -(-total // budget)
    return [chunks[first::number] for first in range(number)]


def _tasks(
    plan: Plan, target: Sequence[Piece], rounds: list[list[tuple[str, Box]]], holders: _Holders
) -> list[list[_Task]]:
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for piece in target:
        pieces[piece.key].append(piece)
    tasks: list[list[_Task]] = []
    for chunks in rounds:
        tasks.append([])
        for key, chunk in chunks:
            for piece in pieces[key]:
                box = intersect(piece.box, chunk)
                if box is None:
                    continue
                needs = tuple(
                    part
                    for source, wanted in sources(plan.map(key, piece.kind), box)
                    for part in holders.find(source, piece.kind, wanted)
                )
                tasks[-1].append(_Task(piece, box, needs))
    return tasks


def _remote(tasks: Iterable[_Task]) -> list[_Slice]:
    """What others send to this rank in one round, each slice once."""
    rank = dist.get_rank()
    wanted = (part for task in tasks for part in task.needs if part.holder != rank)
    return list(dict.fromkeys(wanted))


def _exchange_requests(tasks: list[list[_Task]]) -> list[list[list[_Slice]]]:
    """For each rank and round, the slices that it wants from this rank."""
    rank, world = dist.get_rank(), dist.get_world_size()
    asked: list[list[list[_Slice]]] = [[] for _ in range(world)]
    dist.all_gather_object(asked, [_remote(round_tasks) for round_tasks in tasks])
    return [[[p for p in parts if p.holder == rank] for parts in rounds] for rounds in asked]


def _exchange(
    tasks: list[_Task], asked: list[list[_Slice]], source: Sequence[Piece]
) -> tuple[dict[_Slice, torch.Tensor], int]:
    """Send what others asked for in this round and receive what this rank's tasks need."""
    world = dist.get_world_size()
    wanted: list[list[_Slice]] = [[] for _ in range(world)]
    for part in _remote(tasks):
        wanted[part.holder].append(part)
    if world == 1:
        return {}, 0
    send_sizes = [sum(volume(part.box) for part in parts) for parts in asked]
    receive_sizes = [sum(volume(part.box) for part in parts) for parts in wanted]
    outgoing = torch.empty(sum(send_sizes), device=cpu.device())
    incoming = torch.empty(sum(receive_sizes), device=cpu.device())
    done = 0
    for parts in asked:
        for part in parts:
            piece = source[part.piece]
            sent = piece.data[slices(part.box, piece.box)]
            outgoing[done : done + sent.numel()].view(sent.shape).copy_(sent)
            done += sent.numel()
    dist.all_to_all_single(incoming, outgoing, receive_sizes, send_sizes)
    values: dict[_Slice, torch.Tensor] = {}
    done = 0
    for parts in wanted:
        for part in parts:
            count = volume(part.box)
            shape = [stop - start for start, stop in part.box]
            values[part] = incoming[done : done + count].view(shape)
            done += count
    return values, incoming.numel() * incoming.element_size()


def _make(
    plan: Plan, task: _Task, source: Sequence[Piece], received: dict[_Slice, torch.Tensor]
) -> None:
    rank = dist.get_rank()

    def read(key: str, kind: str, box: Box) -> torch.Tensor:  # all that is asked for is of one kind
        parts = []
        for part in task.needs:
            common = intersect(part.box, box) if part.key == key else None
            if common is None:
                continue
            if part.holder == rank:
                origin, data = source[part.piece].box, source[part.piece].data
            else:
                origin, data = part.box, received[part]
            if common == box:
                return data[slices(box, origin)]
            parts.append((common, data[slices(common, origin)]))
        whole = torch.empty([b - a for a, b in box], device=task.target.data.device)
        for common, values in parts:
            whole[slices(common, box)] = values
        return whole

    target = task.target
    out = target.data[slices(task.box, target.box)]
    tensor_map = plan.map(target.key, target.kind)
    materialise(tensor_map, target.kind, task.box, read, plan.seed, out)
