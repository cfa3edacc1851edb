"""Whole tensors of a live state, put together from what its ranks hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_grow.state.boxes import Box, slices
from megatron_grow.state.piece import Piece
from megatron_grow.state.tensors import LogicalTensor

State = dict[tuple[str, str], np.ndarray]
"""Whole tensors, by (key, kind)."""


@dataclass(frozen=True)
class Part:
    """A copy of a piece that can leave its rank."""

    key: str
    kind: str
    box: Box
    values: np.ndarray
    owned: bool


def snapshot(pieces: Sequence[Piece]) -> list[Part]:
    """A copy of this rank's state."""
    return [Part(p.key, p.kind, p.box, p.data.float().numpy().copy(), p.owned) for p in pieces]


def model_weights(chunks: Sequence[torch.nn.Module]) -> list[Part]:
    """What a model computes with on this rank, as megatron-core cuts it.

    ``kind`` is the data type, and boxes are in the checkpoint's axes.
    """
    parts = []
    for entry in (entry for chunk in chunks for entry in chunk.sharded_state_dict().values()):
        for shard in entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]:
            if isinstance(shard, ShardedTensor):
                data = shard.data.detach()[(None,) * shard.prepend_axis_num]
                ends = (o + size for o, size in zip(shard.global_offset, data.shape, strict=True))
                box = tuple(zip(shard.global_offset, ends, strict=True))
                values = data.float().numpy().copy()
                parts.append(Part(shard.key, str(data.dtype), box, values, False))
    return parts


def assemble(tensors: dict[str, LogicalTensor], ranks: Sequence[Sequence[Part]]) -> State:
    """The whole state from the snapshots of all ranks.

    It must be sound: owned pieces tile each tensor, replicas agree with them to the bit, and the
    moments of a tensor come with its weights.
    """
    parts = [part for rank in ranks for part in rank]
    state: State = {}
    owners: dict[tuple[str, str], np.ndarray] = {}
    for key, kind in {(part.key, part.kind) for part in parts}:
        state[key, kind] = np.full(tensors[key].shape, np.nan, np.float32)
        owners[key, kind] = np.zeros(tensors[key].shape, int)
    for part in parts:
        assert part.values.shape == tuple(stop - start for start, stop in part.box)
        if part.owned:
            state[part.key, part.kind][slices(part.box)] = part.values
            owners[part.key, part.kind][slices(part.box)] += 1
    for (key, kind), count in owners.items():
        assert (count == 1).all(), f"owned pieces of {kind} of {key} do not tile it"
    for part in parts:
        assert np.array_equal(state[part.key, part.kind][slices(part.box)], part.values), (
            f"replicas of {part.kind} of {part.key} differ"
        )
    assert {key for key, _ in state} == set(tensors)
    return state
