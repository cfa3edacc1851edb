"""Which rank of a job holds which part of the state that a growth draws on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from megatron_grow.state.boxes import Box, intersect, subtract
from megatron_grow.state.piece import Piece

Holdings = dict[str, tuple[frozenset[str], np.ndarray]]
"""What a rank holds of each tensor: the kinds of state, and boxes, (pieces, axes, 2) of begin and
end. At thousands of ranks they are hundreds of thousands, and every rank learns of all."""


class Slice(NamedTuple):
    """A part of a source piece that a target needs."""

    holder: int
    """Rank that has it."""
    key: str
    kind: str
    held: Box
    """Of the piece."""
    box: Box
    """Of the part."""


class _Table(NamedTuple):
    """The pieces of one tensor on all ranks; those that are near come first."""

    holders: np.ndarray
    """(pieces,)"""
    boxes: np.ndarray
    """(pieces, axes, 2)"""
    kinds: frozenset[str]


def holdings(source: Sequence[Piece]) -> Holdings:
    """What ``source`` tells the other ranks; all kinds of state of a tensor are cut alike."""
    kinds: dict[str, set[str]] = defaultdict(set)
    boxes: dict[str, dict[Box, None]] = defaultdict(dict)
    for piece in source:
        kinds[piece.key].add(piece.kind)
        boxes[piece.key][piece.box] = None
    return {key: (frozenset(kinds[key]), np.array([*boxes[key]])) for key in boxes}


class Holders:
    """Who holds which part of a state."""

    def __init__(self, held: Sequence[Holdings], rank: int) -> None:
        """Take what each rank holds, for rank ``rank`` to ask."""
        self.rank, self.world = rank, len(held)
        # Its own come first; then its neighbours', so that replicas share the load.
        near = [(rank + step) % self.world for step in range(self.world)]
        self._tables: dict[str, _Table] = {}
        for key in dict.fromkeys(key for its in held for key in its):
            with_it = [holder for holder in near if key in held[holder]]
            found = [held[holder][key] for holder in with_it]
            self._tables[key] = _Table(
                np.repeat(with_it, [len(boxes) for _, boxes in found]),
                np.concatenate([boxes for _, boxes in found]),
                frozenset.intersection(*(kinds for kinds, _ in found)),
            )
        self._tiles: dict[tuple[str, Box], list[tuple[int, Box, Box]]] = {}

    def find(self, key: str, kind: str, box: Box) -> list[Slice]:
        """Slices that tile ``box``, from as near as possible."""
        if key not in self._tables or kind not in self._tables[key].kinds:
            raise RuntimeError(f"no rank holds {kind} of {key}")
        if (key, box) not in self._tiles:
            self._tiles[key, box] = self._tile(key, box)
        tiles = self._tiles[key, box]
        return [Slice(holder, key, kind, held, part) for holder, held, part in tiles]

    def _tile(self, key: str, box: Box) -> list[tuple[int, Box, Box]]:
        """Holders, their pieces and the parts of these, which tile ``box``."""
        table, wanted = self._tables[key], np.array(box)
        begins, ends = table.boxes[..., 0], table.boxes[..., 1]
        near = np.flatnonzero(((begins < wanted[:, 1]) & (ends > wanted[:, 0])).all(1))
        found, missing = [], [box]
        for number in near.tolist():
            if not missing:
                break
            held: Box = tuple((begin, end) for begin, end in table.boxes[number].tolist())
            rest = []
            for part in missing:
                common = intersect(part, held)
                if common is None:
                    rest.append(part)
                    continue
                found.append((int(table.holders[number]), held, common))
                rest += subtract(part, common)
            missing = rest
        if missing:
            raise RuntimeError(f"no rank holds {missing} of {key}")
        return found
