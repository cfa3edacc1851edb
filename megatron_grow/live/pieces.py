"""The training state of a live model: logical tensors in, pieces of this rank's memory out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer, DistributedOptimizer
from megatron.core.optimizer.optimizer import (
    Float16OptimizerWithFloat16Params,
    MixedPrecisionOptimizer,
)

from megatron_grow.live.placement import placement, without_padding
from megatron_grow.optim.state import wrappers
from megatron_grow.parallel import process_groups
from megatron_grow.state.boxes import Box, from_flat_range, shape_of, volume
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.piece import Piece
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class Shard:
    """What this rank updates of one parameter: of a layer of a logical tensor, or of a tensor
    without layers."""

    key: str
    layer: int | None
    """Of the model; None: of no layer."""
    box: Box
    """Of the parameter as this rank's model has it."""
    start: int | None
    """Where the flat range begins that this rank updates, under the distributed optimizer; None:
    it updates all of the box."""
    main: torch.Tensor
    """The main parameter; its ``grad`` is the gradient that is ready for an update."""
    state: dict[str, torch.Tensor]
    """Moments, by kind; of the form of ``main``."""
    counts: bool
    """Over all ranks, those that count of a layer tile it, or of a tensor without layers: others
    are replicas."""
    owned: bool
    """As for a piece: of layers that share their parameters, only one's are."""

    @property
    def gradient(self) -> torch.Tensor:
        """That of the main parameter; between a backward pass and the update."""
        assert self.main.grad is not None, "gradients are ready"
        return self.main.grad

    def values(self, storage: torch.Tensor) -> torch.Tensor:
        """What memory of the form of ``main`` holds of the tensor, flat, without padding."""
        return storage.detach().view(-1)[: max(0, volume(self.box) - (self.start or 0))]

    def views(self, storage: torch.Tensor) -> list[tuple[Box, torch.Tensor]]:
        """Boxes of the logical tensor, and where they lie in memory of the form of ``main``."""
        if self.start is None:
            return [(self.box, without_padding(storage.detach(), self.box))]
        found, done, flat = [], 0, storage.detach()
        stop = min(self.start + storage.numel(), volume(self.box))
        for part in from_flat_range(shape_of(self.box), self.start, stop):
            moved = tuple((a + o, b + o) for (a, b), (o, _) in zip(part, self.box, strict=True))
            found.append((moved, flat[done : done + volume(part)].view(shape_of(part))))
            done += volume(part)
        return found

    def pieces(self, kind: str, storage: torch.Tensor) -> Iterator[Piece]:
        """Pieces of memory of the form of ``main``; a flat range makes a few boxes."""
        for box, data in self.views(storage):
            yield Piece(self.key, kind, box, data, self.owned)


def live_shards(
    chunks: Sequence[DistributedDataParallel],
    optimizer: ChainedOptimizer,
    tensors: dict[str, LogicalTensor],
) -> list[Shard]:
    """What this rank updates.

    Under the distributed optimizer a rank holds a flat range of each parameter; otherwise it holds
    all of its tensor-parallel shard, as its data-parallel peers do.
    """
    placed = {
        id(param): where for chunk in chunks for param, where in placement(chunk.module, tensors)
    }
    shards = []
    for number, (param, main, start, state) in enumerate(_optimizer_state(optimizer)):
        where = placed[id(param)]
        if not volume(where.box):  # padding alone
            continue
        rank, replicas = process_groups.replica(tensors[where.key].of_experts)
        shared_out = number % replicas == rank  # replicas divide the writing among them
        counts = where.first_of_ranks and (start is not None or shared_out)
        owned = counts and where.primary
        shards.append(Shard(where.key, where.layer, where.box, start, main, state, counts, owned))
    return shards


def live_pieces(shards: Sequence[Shard]) -> list[Piece]:
    """All state of ``shards``, in an order that does not depend on the optimizer."""
    pieces = [
        piece
        for shard in shards
        for kind, storage in ((MAIN_PARAM, shard.main), *shard.state.items())
        for piece in shard.pieces(kind, storage)
    ]
    return sorted(pieces, key=lambda piece: (piece.key, piece.kind, piece.box))


def write_back(
    chunks: Sequence[DistributedDataParallel],
    optimizer: ChainedOptimizer,
    *,
    overlapped: bool = False,
) -> None:
    """Make the model's weights those of the main parameters, after these were written to.

    With ``overlapped``, ranks whose gathers overlap with the forward pass leave them to it.
    """
    for part in wrappers(optimizer):
        if isinstance(part, MixedPrecisionOptimizer):  # others update the model's own
            part._copy_main_params_to_model_params()
    for chunk in chunks:
        ddp = chunk.ddp_config
        if ddp.use_distributed_optimizer and not (overlapped and ddp.overlap_param_gather):
            chunk.start_param_sync(force_sync=True)


def _optimizer_state(
    optimizer: ChainedOptimizer,
) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor, int | None, dict]]:
    """Model parameter, main parameter, its flat start in the parameter (None: whole), state."""
    for part in wrappers(optimizer):
        inner = part.optimizer
        if isinstance(part, DistributedOptimizer):
            for param, (group, order) in part.model_param_group_index_map.items():
                main = inner.param_groups[group]["params"][order]
                start = part._get_model_param_range_map(param)["param"].start
                yield param, main, start, _kept(part, main)
        elif isinstance(part, Float16OptimizerWithFloat16Params):
            for params, mains in zip(
                part.float16_groups, part.fp32_from_float16_groups, strict=True
            ):
                for param, main in zip(params, mains, strict=True):
                    yield param, main, None, _kept(part, main)
        else:
            for group in inner.param_groups:
                for param in group["params"]:
                    yield param, param, None, _kept(part, param)


def _kept(part: Any, main: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the rule of a wrapper keeps of a main parameter, without its count of updates."""
    state = part.optimizer.state[main]
    return {name: state[name] for name in part.rule.states}
