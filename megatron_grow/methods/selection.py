"""Entries that a method treats apart, in the memory of this rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch

from megatron_grow.growth.plan import Plan
from megatron_grow.inputs.errors import UserError
from megatron_grow.live.pieces import Shard
from megatron_grow.state.boxes import Box, shape_of
from megatron_grow.state.tensors import LogicalTensor

Flags = dict[int, torch.Tensor]
"""A bool for each entry of some axes, by their position: an entry of the tensor is meant where all
of them say so."""


def old_entries(plan: Plan, tensor: LogicalTensor) -> Flags:
    """What the stage before had: along every axis an entry of its own."""
    tensor_map = plan.weights[tensor.key]
    return {axis: tensor_map.old(axis) for axis in range(len(tensor.axes))}


def check_old(plan: Plan, where: str) -> None:
    """Refuse a growth of which nobody can tell, when a run is resumed, what was there before."""
    if not plan.knows_old:
        raise UserError(
            f"{where} acts on what is old or new; in this growth ({plan.summary}) the source's "
            "weights decide where that is"
        )


def in_box(flags: Flags, box: Box) -> torch.Tensor:
    """Which entries of ``box`` are meant: bool, of its shape."""
    parts = (
        selected[slice(*box[axis])].view([-1 if i == axis else 1 for i in range(len(box))])
        for axis, selected in flags.items()
    )
    return reduce(torch.logical_and, parts, torch.ones(shape_of(box), dtype=torch.bool))


@dataclass(frozen=True)
class Selected:
    """Entries of a shard."""

    shard: Shard
    masks: tuple[torch.Tensor, ...]
    """For each of its boxes."""

    @cached_property
    def is_all(self) -> bool:
        """Whether they are all that it has."""
        return all(bool(mask.all()) for mask in self.masks)

    def places(self, storage: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Where they lie in memory of the form of the main parameter: views and their masks."""
        for (_, view), mask in zip(self.shard.views(storage), self.masks, strict=True):
            yield view, mask


def select(
    shards: Sequence[Shard], entries: Callable[[str, Box], torch.Tensor]
) -> Iterator[Selected]:
    """The shards in which ``entries`` says for a key and a box that some are meant."""
    for shard in shards:
        masks = tuple(
            entries(shard.key, box).to(view.device) for box, view in shard.views(shard.main)
        )
        if any(bool(mask.any()) for mask in masks):
            yield Selected(shard, masks)
