"""Write a checkpoint: whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.checkpointable import (
    CheckpointableShardedTensor,
    LocalShardsContainer,
)

from megatron_grow.checkpoint.layout import (
    COMMON,
    COMPLETE,
    RECORD,
    TRACKER,
    saved_steps,
    set_aside,
    step_dir,
    tensor_key,
)
from megatron_grow.checkpoint.megatron_state import common_state
from megatron_grow.checkpoint.record import Record
from megatron_grow.state.axes import LogicalTensor
from megatron_grow.state.boxes import fold, shape_of, slices
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.live import Piece

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def save(
    root: Path,
    record: Record,
    pieces: Sequence[Piece],
    tensors: dict[str, LogicalTensor],
    *,
    with_optimizer: bool = True,
    keep_last: int = 0,
) -> Path:
    """Write ``root/iter_*`` in megatron-core's ``torch_dist`` format; every rank takes part.

    Each rank writes the pieces that it owns, so nothing is gathered. The directory is written under
    another name and renamed when it is complete and on disk; the tracker file moves last.

    Args:
        root: directory of the run's checkpoints.
        record: where the run stands.
        pieces: this rank's live state.
        tensors: the model's logical tensors.
        with_optimizer: save main parameters and moments too.
        keep_last: complete checkpoints to keep, this one included; 0 keeps all.

    Returns:
        The checkpoint's directory.
    """
    final = step_dir(root, record.step)
    partial = root / f".{final.name}.partial"
    if dist.get_rank() == 0:
        _sweep(root)
        partial.mkdir(parents=True)
    dist.barrier()
    # torch's writer rather than megatron-core's: the same files, without its helper processes.
    state = _state_dict(pieces, tensors, _DTYPES[record.precision], with_optimizer)
    if dist.get_rank() == 0:
        state |= _extra_state(tensors.values())
    dcp.save(
        state,
        storage_writer=dcp.FileSystemWriter(partial, sync_files=True),
        planner=dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
    )
    if dist.get_rank() == 0:
        torch.save(common_state(record, with_optimizer=with_optimizer), partial / COMMON)
        (partial / RECORD).write_text(record.to_json())
        save_config(CheckpointingConfig("torch_dist", 1), str(partial))
        _sync(*partial.iterdir(), partial)
        _move_into_place(partial, final)
        _point(root, record.step)
        _prune(root, keep_last)
        _sweep(root)
    dist.barrier()
    return final


def _state_dict(
    pieces: Sequence[Piece],
    tensors: dict[str, LogicalTensor],
    weight_dtype: torch.dtype,
    with_optimizer: bool,
) -> dict[str, Any]:
    shards: dict[str, list[CheckpointableShardedTensor]] = defaultdict(list)

    def add(key: str, piece: Piece, data: torch.Tensor) -> None:
        tensor = tensors[piece.key]
        for fine, coarse in fold(tensor.shape, piece.box, tensor.groups):
            part = data[slices(fine, piece.box)].reshape(shape_of(coarse))
            sharded = ShardedTensor(
                key=key,
                data=part,
                dtype=part.dtype,
                local_shape=tuple(part.shape),
                global_shape=tensor.checkpoint_shape,
                global_offset=tuple(start for start, _ in coarse),
                axis_fragmentations=None,
            )
            shards[key].append(CheckpointableShardedTensor.from_sh_ten(sharded))

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


def _extra_state(tensors: Iterable[LogicalTensor]) -> dict[str, Any]:
    """What megatron-core's loader asks of every projection: an extra state, empty but for FP8."""
    return {
        f"{tensor.key.removesuffix('weight')}_extra_state/shard_{layer}_{tensor.shape[0]}": [None]
        for tensor in tensors
        if tensor.stacked and tensor.cut and tensor.key.endswith(".weight")
        for layer in range(tensor.shape[0])
    }


def _sync(*paths: Path) -> None:
    """Put files, and the names in directories, on disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _move_into_place(partial: Path, final: Path) -> None:
    """Rename; an older checkpoint of the same step stays whole until the new one can take over."""
    if final.exists():
        final.rename(set_aside(final))
    partial.rename(final)
    _sync(final.parent)


def _point(root: Path, step: int) -> None:
    tracker = root / f".{TRACKER}"
    tracker.write_text(str(step))
    _sync(tracker)
    tracker.rename(root / TRACKER)
    _sync(root)


def _prune(root: Path, keep_last: int) -> None:
    for step in saved_steps(root)[:-keep_last] if keep_last else []:
        doomed = step_dir(root, step)
        # Renamed first, so that a half-deleted one never looks whole.
        doomed.rename(doomed.with_name(f".{doomed.name}.deleted"))


def _sweep(root: Path) -> None:
    """Delete what this save, or an earlier one that was killed, has left over."""
    for path in root.glob(".iter_*.*"):
        final = root / path.stem.removeprefix(".")
        # The only whole checkpoint of its step is no leftover, whatever it is called.
        if path != set_aside(final) or (final / COMPLETE).exists():
            shutil.rmtree(path, ignore_errors=True)
