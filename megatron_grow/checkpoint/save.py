"""Write a checkpoint: whole or not at all."""

from __future__ import annotations

import secrets
import shutil
import socket
from collections import defaultdict
from collections.abc import Sequence
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

from megatron_grow.checkpoint.layout import DTYPES, step_dir
from megatron_grow.checkpoint.lock import Holder, check_held
from megatron_grow.checkpoint.manifest import write_manifest
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.root import latest
from megatron_grow.checkpoint.staging import partial, prune, publish, sweep
from megatron_grow.checkpoint.torch_dist.companions import COMPANIONS, extra_state, write_companions
from megatron_grow.checkpoint.torch_dist.names import tensor_key
from megatron_grow.checkpoint.torch_dist.shards import RankShards, ShardWriter, check_seen
from megatron_grow.checkpoint.torch_dist.stored import stored_parts, stored_shapes
from megatron_grow.config.errors import AgreedError, UserError, one_line
from megatron_grow.live.pieces import Piece
from megatron_grow.parallel.agreement import gather, leads, together
from megatron_grow.state.boxes import shape_of, slices
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.tensors import LogicalTensor


def save(
    root: Path,
    record: Record,
    pieces: Sequence[Piece],
    tensors: dict[str, LogicalTensor],
    *,
    with_optimizer: bool = True,
    keep_last: int = 0,
    holder: Holder | None = None,
) -> Path:
    """Write ``root/iter_*`` in megatron-core's ``torch_dist`` format; every rank takes part.

    Each rank writes the pieces that it owns, so nothing is gathered. The directory is written under
    another name, of this save alone, and renamed when rank 0 has seen that it is complete and on
    disk; the tracker file moves last.

    Args:
        root: directory of the run's checkpoints.
        record: where the run stands.
        pieces: this rank's live state.
        tensors: the model's logical tensors.
        with_optimizer: save main parameters and moments too.
        keep_last: complete checkpoints to keep, this one included; 0 keeps all.
        holder: on rank 0, as whom ``root`` is held; None: nobody else writes there.

    Returns:
        The checkpoint's directory.

    Raises:
        AgreedError: a file system refuses, rank 0 does not see what another rank has written, or
            ``root`` is another's now.
            Nothing is left of the directory; older checkpoints are as they were.
    """
    final = step_dir(root, record.step)
    written = partial(final, gather(secrets.token_hex(4))[0])
    try:
        _write(written, final, record, pieces, tensors, with_optimizer, holder)
    except (UserError, CheckpointException) as error:
        # Every rank removes what it sees: they may not share a file system.
        shutil.rmtree(written, ignore_errors=True)
        reason = _reason(error)
        if reason is None:
            raise RuntimeError(f"a rank could not write the checkpoint: {error}") from None
        raise AgreedError(
            f"the checkpoint of step {record.step} could not be written to {root}: {reason}; "
            f"{_last_good(root)}"
        ) from None
    together(lambda: _thin_out(root, record.step, keep_last) if leads() else None)
    return final


def _write(
    written: Path,
    final: Path,
    record: Record,
    pieces: Sequence[Piece],
    tensors: dict[str, LogicalTensor],
    with_optimizer: bool,
    holder: Holder | None,
) -> None:
    root = final.parent

    def begin() -> None:
        if holder is not None:
            check_held(root, holder)
        sweep(root)
        written.mkdir(parents=True)

    together(lambda: begin() if leads() else None)
    writer = ShardWriter(written)
    state = _state_dict(pieces, tensors, DTYPES[record.precision], with_optimizer)
    if leads():
        state |= extra_state(tensors.values())
    dcp.save(
        state,
        storage_writer=writer,
        planner=dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
    )
    written_by = gather(RankShards(dist.get_rank(), socket.gethostname(), writer.shards))

    def finish() -> None:
        shards = check_seen(written, written_by)
        write_companions(written, record, with_optimizer)
        write_manifest(written, COMPANIONS, shards=shards)
        if holder is not None:
            check_held(root, holder)
        publish(written, final, record.step)

    together(lambda: finish() if leads() else None)


def _thin_out(root: Path, step: int, keep_last: int) -> None:
    prune(root, step, keep_last)
    sweep(root)


def _reason(error: UserError | CheckpointException) -> str | None:
    """Why a save failed, with the rank; None if it was no refusal. The same on every rank."""
    if isinstance(error, UserError):
        return str(error)
    refusals = {rank: one_line(cause) for rank, (cause, _) in error.failures.items()}
    return next((f"{said} (rank {rank})" for rank, said in refusals.items() if said), None)


def _last_good(root: Path) -> str:
    try:
        path = latest(root)
    except UserError as error:
        return str(error)
    return f"the last good one is {path}" if path else "there is none before it"


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
