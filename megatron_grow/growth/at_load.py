"""Apply a plan while loading a checkpoint: each rank reads only the slices that it needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_grow.checkpoint.layout import tensor_key
from megatron_grow.checkpoint.stream import CheckpointReader
from megatron_grow.config.errors import UserError
from megatron_grow.growth.plan import Plan
from megatron_grow.state.axes import LogicalTensor
from megatron_grow.state.boxes import Box, fold, shape_of, slices, split
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.live import Piece
from megatron_grow.state.maps import materialise

# Values made at a time, so that memory stays bounded.
_PART = 1 << 24


def load(
    plan: Plan,
    reader: CheckpointReader,
    stored: dict[str, LogicalTensor],
    target: Sequence[Piece],
) -> None:
    """Fill ``target`` from a checkpoint by ``plan``; no rank talks to another.

    Args:
        plan: the maps; :func:`~megatron_grow.growth.plan.resharding` for a plain resume.
        reader: the checkpoint.
        stored: the logical tensors of the stored model.
        target: what this rank must hold; written to.

    Raises:
        UserError: the checkpoint lacks a tensor, or has another shape.
    """
    for piece in target:
        tensor_map = plan.map(piece.key, piece.kind)

        def read(key: str, box: Box, kind: str = piece.kind) -> torch.Tensor:
            return _read(reader, stored[key], kind, box)

        for box in split(piece.box, _PART):
            materialise(tensor_map, box, read, plan.seed, piece.data[slices(box, piece.box)])


def _read(reader: CheckpointReader, tensor: LogicalTensor, kind: str, box: Box) -> torch.Tensor:
    key = tensor_key(tensor.key, kind)
    if key not in reader and kind == MAIN_PARAM:
        key = tensor.key  # an fp32 checkpoint stores weights once; one without optimizer, rounded
    if key not in reader:
        raise UserError(f"{reader.directory} has no {key}")
    if reader.shape(key) != tensor.checkpoint_shape:
        raise UserError(
            f"{reader.directory}: {key} has shape {reader.shape(key)}, "
            f"the model needs {tensor.checkpoint_shape}"
        )
    out = torch.empty(shape_of(box))
    for fine, coarse in fold(tensor.shape, box, tensor.groups):
        out[slices(fine, box)] = reader.read(key, coarse).view(shape_of(fine))
    return out
