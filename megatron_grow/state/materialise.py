"""Any slice of a target tensor, made from slices of source tensors by a map.

Whoever applies a map (between live models, while loading, or from file to file) supplies only the
function that reads source slices, so that all of them get the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Protocol

import numpy as np
import torch

from megatron_grow.state.axis_map import Segment
from megatron_grow.state.boxes import Box, shape_of, slices, split, subtract, union
from megatron_grow.state.fresh import fresh
from megatron_grow.state.maps import TensorMap, Term
from megatron_grow.state.memory import as_bits, cast, empty
from megatron_grow.state.noise import noise
from megatron_grow.state.tensors import ZERO, Init

# Values made in fp64: rows of tiles, of the widest matrices.
_NOISE_AT_A_TIME = 1 << 22


class Read(Protocol):
    """Supplies slices of a source's state, as every checkpoint reader does."""

    def __call__(self, key: str, kind: str, box: Box, /) -> torch.Tensor:
        """The values of one kind of state of the tensor ``key`` in ``box``; not written to.

        Of the box's shape.

        Of any floating type: whatever is calculated from them is calculated in fp32.
        """
        ...


def sources(tensor_map: TensorMap, box: Box) -> list[tuple[str, Box]]:
    """The source slices that :func:`materialise` will read for ``box``, in its order."""
    return [
        (term.source, _source(block))
        for term, block in _blocks(tensor_map, box)
        if _is_drawn(block)
    ]


def fresh_parts(tensor_map: TensorMap, box: Box) -> list[tuple[Box, Init]]:
    """The parts of ``box`` that draw on nothing, and how they are made."""
    return _missing(tensor_map, box, list(_blocks(tensor_map, box)))


def materialise(
    tensor_map: TensorMap,
    kind: str,
    box: Box,
    read: Read,
    seed: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The values of the target in ``box``; the same bits in whatever boxes it is asked for.

    Args:
        tensor_map: the map.
        kind: of state, which is drawn from the same kind of the source.
        box: in the fine axes of the target.
        read: supplies source slices; only those of :func:`sources` are asked for.
        seed: decides fresh values.
        out: written to and returned, if given; fp32, of the box's shape, on any device.

    Returns:
        Of the shape of ``box``, fp32; without ``out``, values that one read supplies and nothing
        changes are returned as they were read.
    """
    blocks, one_term = list(_blocks(tensor_map, box)), len(tensor_map.terms) == 1
    if out is None:
        whole = one_term and len(blocks) == 1 and _is_drawn(blocks[0][1])
        if whole and not tensor_map.noisy:
            return _draw(*blocks[0], kind, read)
        out = empty(shape_of(box))
    if not one_term:
        out.zero_()
    for term, block in blocks:
        if _is_drawn(block):
            part, values = out[slices(_target(block), box)], _draw(term, block, kind, read)
            part.copy_(values) if one_term else part.add_(values.to(out.device))
    for rest, rule in _missing(tensor_map, box, blocks):
        fresh(tensor_map.target, rest, rule, seed, out[slices(rest, box)])
    for alike in tensor_map.noisy:
        for drawn in union(_target(block) for _, block in _blocks(alike, box) if _is_drawn(block)):
            for few in split(drawn, _NOISE_AT_A_TIME):
                out[slices(few, box)].add_(noise(alike, few, seed).to(out))
    return out


def _blocks(tensor_map: TensorMap, box: Box) -> Iterator[tuple[Term, tuple[Segment, ...]]]:
    """What the terms draw of ``box``; and what the first, whose blocks tile the box, does not."""
    for term in tensor_map.terms:
        found: list[list[Segment]] = []
        for axis, extent in zip(term.axes, box, strict=True):
            segments = axis.segments(*extent)
            if term is not tensor_map.terms[0]:
                segments = [segment for segment in segments if segment.source is not None]
            found.append(segments)
            if not segments:  # of other layers, say: the longer axes are not looked at
                break
        yield from ((term, block) for block in product(*found))


def _target(segments: Sequence[Segment]) -> Box:
    return tuple(segment.target for segment in segments)


def _missing(
    tensor_map: TensorMap, box: Box, blocks: Sequence[tuple[Term, Sequence[Segment]]]
) -> list[tuple[Box, Init]]:
    """The parts of ``box`` that no term covers, and the rule for each."""
    if not tensor_map.terms:
        return [(box, tensor_map.fresh)]
    # The blocks of the first term tile the box; what it does not draw, others may.
    first = tensor_map.terms[0]
    missing = [
        (_target(block), _rule(tensor_map, block))
        for term, block in blocks
        if term is first and not _is_drawn(block)
    ]
    for term, block in blocks:
        if term is not first and _is_drawn(block):
            missing = [
                (rest, rule) for part, rule in missing for rest in subtract(part, _target(block))
            ]
    return missing


def _rule(tensor_map: TensorMap, block: Sequence[Segment]) -> Init:
    """How the entries of a block without source are made."""
    rules = [s.fresh for s in block if s.source is None and s.fresh is not None]
    if ZERO in rules:
        return ZERO
    return rules[0] if rules else tensor_map.fresh


def _is_drawn(block: Sequence[Segment]) -> bool:
    return all(segment.source is not None for segment in block)


def _source(block: Sequence[Segment]) -> Box:
    return tuple(segment.source for segment in block)  # type: ignore[misc]


def _draw(term: Term, block: Sequence[Segment], kind: str, read: Read) -> torch.Tensor:
    """What ``term`` contributes to one block."""
    values = read(term.source, kind, _source(block))
    for axis, segment in enumerate(block):
        if segment.index is not None:
            values = _select(values, segment.index, axis)
        if segment.matrix is not None:
            values = _mix(segment.matrix, _wide(values), axis)
        if segment.scale is not None:
            values = _scaled(_wide(values), segment.scale, axis)
    # One row of a mix may stand for many entries.
    values = values.expand(shape_of(_target(block)))
    if term.scale is not None:
        axis = term.scale[0]
        values = _scaled(_wide(values), term.factors(axis, *block[axis].target), axis)
    return values


def _select(values: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """The entries of ``values`` at ``index`` along ``axis``."""
    if not values.is_cpu:
        return values.index_select(axis, index.to(values.device))
    # On CPU torch's own is up to 25 times slower along the last axis; "clip" skips a copy that
    # guards against indices out of range, which there are none of.
    bits = as_bits(values).numpy()
    return torch.from_numpy(np.take(bits, index.numpy(), axis, mode="clip")).view(values.dtype)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """``values`` in at least fp32, to calculate with."""
    return cast(values, torch.promote_types(values.dtype, torch.float32))


def _scaled(values: torch.Tensor, scale: torch.Tensor, axis: int) -> torch.Tensor:
    """``values`` times ``scale`` along ``axis``, rounded once.

    Multiplied in fp64, so that a share of 1/n has the bits of a division by n: 1/3 is no fp32.
    """
    scale = scale.view([-1 if i == axis else 1 for i in range(values.ndim)])
    if not values.is_cpu:
        return (values * scale.to(values.device)).to(values.dtype)
    out = empty(values.shape, values.dtype)
    # numpy converts a few thousand values at a time, torch would all of them.
    np.multiply(values.numpy(), scale.numpy(), out=out.numpy(), casting="same_kind")
    return out


def _mix(matrix: torch.Tensor, values: torch.Tensor, axis: int) -> torch.Tensor:
    """``matrix`` applied along ``axis``, summed in fp64 in the order of the source axis.

    A matrix product would sum in an order that depends on the shape, so on the slice.
    """
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    mixed = torch.zeros((), dtype=torch.float64, device=values.device)
    for weights, entry in zip(
        matrix.to(values.device).unbind(1), values.split(1, axis), strict=True
    ):
        mixed = mixed + weights.view(shape) * entry
    return mixed.to(values.dtype)
