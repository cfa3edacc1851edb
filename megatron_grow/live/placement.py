"""Where the parameters of a rank's model lie in logical tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.distributed import DistributedDataParallel
from megatron.core.transformer.module import MegatronModule

from megatron_grow.parallel import process_groups
from megatron_grow.state.boxes import Box, shape_of, volume
from megatron_grow.state.sharding import held
from megatron_grow.state.tensors import LogicalTensor, stacked_key


class Place(NamedTuple):
    """Where a parameter lies."""

    key: str
    """Of the logical tensor."""
    layer: int | None
    """Of the model; None: of no layer."""
    box: Box
    """That this rank holds."""
    first_of_ranks: bool
    """Whether no rank before this one, in the model-parallel group, has the same layer's."""
    primary: bool
    """Whether it is no replica: no layer before has the same parameters either."""


@dataclass(frozen=True)
class Stored:
    """A parameter as megatron-core's sharded state dict has it.

    That says which layer it is, whatever the pipeline.
    """

    data: torch.nn.Parameter
    key: str
    """Of the logical tensor."""
    layer: int | None
    """None: of no layer."""
    expert: tuple[int, ...]
    """Which expert of its layer; empty: of none."""
    first_of_ranks: bool
    """Whether no rank before this one, in the model-parallel group, has the same layer's."""

    def entry(self, tensor: LogicalTensor) -> tuple[int, ...]:
        """Which entry of the first axes of ``tensor`` it is."""
        return self.expert if self.layer is None else (tensor.entry_of(self.layer), *self.expert)

    def primary(self, tensor: LogicalTensor) -> bool:
        """Whether it is no replica: of ``tensor``, no rank and no layer before has the same."""
        return self.first_of_ranks and (self.layer is None or tensor.is_first(self.layer))


def stored_parameters(module: MegatronModule) -> Iterator[Stored]:
    """Those of a chunk of a model."""
    for stored in module.sharded_state_dict().values():
        if not isinstance(stored, ShardedTensor | ShardedTensorFactory):
            continue
        sharded = stored.build()[0] if isinstance(stored, ShardedTensorFactory) else stored
        key, layer = stacked_key(sharded.key)
        # Where layers are not all alike, the layer is in the key; else it stands before all else.
        first = list(sharded.global_offset[: sharded.prepend_axis_num])
        if layer is None and ".layers." in key:
            layer = first.pop(0)
        *model_parallel_replica, _ = stored.replica_id
        yield Stored(stored.data, key, layer, tuple(first), not any(model_parallel_replica))


def placement(
    module: MegatronModule, tensors: dict[str, LogicalTensor]
) -> Iterator[tuple[torch.nn.Parameter, Place]]:
    """Each parameter, and where it lies."""
    mesh, place = process_groups.mesh(), process_groups.place()
    for stored in stored_parameters(module):
        tensor = tensors[stored.key]
        box = held(tensor.axes, stored.entry(tensor), place, mesh)
        ranks, primary = stored.first_of_ranks, stored.primary(tensor)
        yield stored.data, Place(stored.key, stored.layer, box, ranks, primary)


def tensors_of(
    chunks: Sequence[DistributedDataParallel], tensors: dict[str, LogicalTensor]
) -> dict[torch.nn.Parameter, tuple[LogicalTensor, Box]]:
    """Of each parameter of this rank, the logical tensor and the box of it that it holds."""
    return {
        param: (tensors[where.key], where.box)
        for chunk in chunks
        for param, where in placement(chunk.module, tensors)
    }


def without_padding(values: torch.Tensor, box: Box) -> torch.Tensor:
    """What a parameter's memory holds of a logical tensor, its ``box``; padding lies behind it."""
    return values.view(-1)[: volume(box)].view(shape_of(box))
