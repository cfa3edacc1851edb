"""Save a run's live state in megatron-core's sharded format."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.checkpointable import (
    CheckpointableShardedTensor,
    LocalShardsContainer,
)
from torch.distributed.checkpoint.api import CheckpointException

from megatron_grow.checkpoint.layout import DTYPES
from megatron_grow.checkpoint.manifest import Shard
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.torch_dist.companions import COMPANIONS, extra_state, write_companions
from megatron_grow.checkpoint.torch_dist.names import tensor_key
from megatron_grow.checkpoint.torch_dist.shards import RankShards, ShardWriter, check_seen
from megatron_grow.checkpoint.torch_dist.stored import stored_parts, stored_shapes
from megatron_grow.inputs.errors import AgreedError, one_line
from megatron_grow.parallel.agreement import gather, leads, together
from megatron_grow.state.boxes import shape_of, slices
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.piece import Piece
from megatron_grow.state.tensors import LogicalTensor


def save(
    directory: Path,
    record: Record,
    pieces: Sequence[Piece],
    tensors: dict[str, LogicalTensor],
    with_optimizer: bool,
    group: dist.ProcessGroup | None,
) -> tuple[Iterable[str], dict[str, Shard]]:
    """Each rank writes the pieces that it owns, so nothing is gathered.

    See :meth:`.checkpoint.format.Format.save`.
    """
    writer = ShardWriter(directory)
    state = _state_dict(pieces, tensors, DTYPES[record.precision], with_optimizer)
    if leads():
        state |= extra_state(tensors.values())
    try:
        dcp.save(
            state,
            storage_writer=writer,
            planner=dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=group,
        )
    except CheckpointException as error:  # the same on every rank
        raise _refusal(error) from None
    written_by = gather(RankShards(dist.get_rank(), socket.gethostname(), writer.shards), group)

    def finish() -> dict[str, Shard]:
        shards = check_seen(directory, written_by)
        write_companions(directory, record, with_optimizer)
        return shards

    return COMPANIONS, together(lambda: finish() if leads() else {}, group)


def _refusal(error: CheckpointException) -> Exception:
    """What a rank's file system said, with the rank; another error if that was not the cause."""
    for rank, (cause, _) in error.failures.items():
        if said := one_line(cause):
            return AgreedError(f"{said} (rank {rank})")
    return RuntimeError(f"a rank could not write the checkpoint: {error}")


def _state_dict(
    pieces: Sequence[Piece],
    tensors: dict[str, LogicalTensor],
    weight_dtype: torch.dtype,
    with_optimizer: bool,
) -> dict[str, Any]:
    shards: dict[str, list[CheckpointableShardedTensor]] = defaultdict(list)

    def add(key: str, piece: Piece, data: torch.Tensor) -> None:
        tensor = tensors[piece.key]
        shapes = stored_shapes(key, tensor)
        for name, fine, coarse in stored_parts(key, tensor, piece.box):
            part = data[slices(fine, piece.box)].reshape(shape_of(coarse))
            sharded = ShardedTensor(
                key=name,
                data=part,
                dtype=part.dtype,
                local_shape=tuple(part.shape),
                global_shape=shapes[name],
                global_offset=tuple(start for start, _ in coarse),
                axis_fragmentations=None,
            )
            shards[name].append(CheckpointableShardedTensor.from_sh_ten(sharded))

    for piece in pieces:
        if not piece.owned:
            continue
        if piece.kind == MAIN_PARAM:
            # The model's own weights are the main parameters, rounded.
            add(piece.key, piece, piece.data.to(weight_dtype))
        exact = piece.kind == MAIN_PARAM and weight_dtype == piece.data.dtype
        if with_optimizer and not exact:
            add(tensor_key(piece.key, piece.kind), piece, piece.data)
    return {key: LocalShardsContainer(parts) for key, parts in shards.items()}
