"""How large a source's values are, where the noise of a growth is relative to that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from megatron_grow.checkpoint.reader import Reader
from megatron_grow.parallel.agreement import gather, place, together
from megatron_grow.state.boxes import full, split
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.power import Layer, root_mean_squares

if TYPE_CHECKING:  # the converter starts without megatron-core, which takes seconds to import
    from megatron_grow.live.pieces import Piece

# Values read at a time.
_PART = 1 << 24

Rms = dict[str, tuple[float, ...]]
"""Root mean square of each layer, by key."""


def of_pieces(pieces: Iterable[Piece], keys: frozenset[str]) -> Rms:
    """Of what all ranks hold together; every rank takes part."""

    def parts() -> Iterator[tuple[Layer, torch.Tensor]]:
        for piece in pieces:
            if piece.owned and piece.kind == MAIN_PARAM and piece.key in keys:
                for layer, values in enumerate(piece.data, piece.box[0][0]):
                    yield (piece.key, layer), values

    return root_mean_squares(parts, _everyone)


def of_checkpoint(source: Reader, keys: frozenset[str]) -> Rms:
    """Of a checkpoint, whose layers the ranks read in turn; every rank takes part.

    Raises:
        UserError: on every rank, if it is damaged where one of them reads.
    """
    rank, ranks = place()
    layers = [(key, layer) for key in sorted(keys) for layer in range(source.tensors[key].shape[0])]
    return root_mean_squares(lambda: _read(source, layers[rank::ranks]), _everyone)


def of_tensor(source: Reader, key: str) -> tuple[float, ...]:
    """Of one tensor of a checkpoint, by this process alone."""
    layers = [(key, layer) for layer in range(source.tensors[key].shape[0])]
    return root_mean_squares(lambda: _read(source, layers), lambda measure: [measure()])[key]


def _everyone(measure: Callable[[], Any]) -> list[Any]:
    """What every rank measures; a mistake of one is that of all."""
    return gather(together(measure))


def _read(source: Reader, layers: Iterable[Layer]) -> Iterator[tuple[Layer, torch.Tensor]]:
    for key, layer in layers:
        box = ((layer, layer + 1), *full(source.tensors[key].shape)[1:])
        for part in split(box, _PART):
            yield (key, layer), source.read(key, MAIN_PARAM, part)
