"""Apply a plan while loading a checkpoint: each rank reads only the slices that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from megatron_grow.checkpoint.reader import Reader, finite
from megatron_grow.growth.answers import of_checkpoint
from megatron_grow.growth.plan import Plan
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import slices, split
from megatron_grow.state.materialise import materialise
from megatron_grow.state.piece import Piece

# Values made at a time, so that memory stays bounded.
_PART = 1 << 24


def load(plan: Plan, source: Reader, target: Sequence[Piece]) -> None:
    """Fill ``target`` from a checkpoint by ``plan``; every rank of the job takes part.

    Args:
        plan: the maps; :func:`~megatron_grow.growth.plan.resharding` for a plain resume.
        source: the checkpoint.
        target: what this rank must hold; written to.

    Raises:
        UserError: the checkpoint lacks a kind of state, is damaged, or not finite.
    """
    read = finite(source)
    plan = plan.answered(partial(of_checkpoint, read))
    for piece in target:
        tensor_map = plan.map(piece.key, piece.kind)
        for term in tensor_map.terms:
            # A model without layers has no tensor for a map of nothing but fresh layers.
            if term.source in source.tensors and piece.kind not in source.kinds(term.source):
                raise UserError(f"{source.path} holds no {piece.kind} of {term.source}")
        for box in split(piece.box, _PART):
            out = piece.data[slices(box, piece.box)]
            materialise(tensor_map, piece.kind, box, read, plan.seed, out)
