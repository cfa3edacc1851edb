"""Whether layers that a growth has made die: they learn, or are heard, less and less."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

from megatron_grow.growth.plan import Plan
from megatron_grow.state.axes import HIDDEN
from megatron_grow.state.tensors import LogicalTensor

ROWS = 3
"""In so many rows running a layer must be below the share before it is told."""
Signal = Literal["gain", "update"]


@dataclass(frozen=True)
class Watched:
    """A tensor whose layers are watched."""

    signal: Signal
    """By its size, as of a norm that begins or ends a branch, or by how much an update changes."""
    key: str
    new: frozenset[int]
    """Layers of the model that the last growth has made."""


class Dying(NamedTuple):
    """What is told, once for each layer."""

    signal: Signal
    key: str
    layers: list[int]
    shares: list[float]
    """Of each: its number by that of the others (:class:`DyingLayers`)."""
    since: int
    """The first step at which one of them was below."""


def watched(plan: Plan) -> list[Watched]:
    """What to watch in a stage that begins by ``plan``: nothing where it makes no layers."""
    begins = not any(tensor_map.terms for tensor_map in plan.weights.values())
    if begins or not plan.knows_old:
        return []
    found = []
    for key, tensor in plan.tensors.items():
        signal = _signal(tensor)
        if signal is not None:
            old = plan.weights[key].old(0)
            layers = range(len(tensor.sharing or old)) if tensor.layers is None else tensor.layers
            new = frozenset(layer for layer in layers if not old[tensor.entry_of(layer)])
            found += [Watched(signal, key, new)] if new else []
    return found


def _signal(tensor: LogicalTensor) -> Signal | None:
    if not tensor.stacked:
        return None
    if tensor.is_matrix:
        return "update"
    of_branch = tensor.norm == "gain" and tensor.stream_norm is None
    return "gain" if of_branch and tensor.axes[-1].rule == HIDDEN else None


class DyingLayers:
    """Finds new layers with less than a share of what others have, in ``ROWS`` rows running.

    Of gains that is how far they are from where the stage began, beside the median of the layers
    that the growth has not made; alone, where there are none. Of updates it is their size, beside
    the median of those layers, or of all. What is not updated at all is frozen, and not told.
    """

    def __init__(self, tensors: Iterable[Watched], share: float) -> None:
        self._watched, self._share = [*tensors], share
        self._first: dict[str, Mapping[int, float]] = {}
        self._below: dict[tuple[Watched, int], list[int]] = {}
        """The steps of the rows running."""
        self._told: set[tuple[Watched, int]] = set()

    def observe(self, row: Mapping[str, Any]) -> list[Dying]:
        """What the next row tells, a :class:`.LayersRow`; the first is where gains begin."""
        found: dict[Watched, list[tuple[int, float, int]]] = defaultdict(list)
        for tensor in self._watched:
            for layer, share in self._shares(tensor, row):
                place = tensor, layer
                if not share < self._share:
                    self._below.pop(place, None)
                    continue
                steps = self._below.setdefault(place, [])
                steps.append(row["step"])
                if len(steps) == ROWS and place not in self._told:
                    self._told.add(place)
                    found[tensor].append((layer, share, steps[0]))
        return [_dying(tensor, each) for tensor, each in found.items()]

    def _shares(self, tensor: Watched, row: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
        """Of each new layer what it has, by what others have."""
        numbers = {
            layer: number
            for layer, number in enumerate(row[tensor.signal][tensor.key])
            if number  # neither None nor frozen
        }
        if tensor.signal == "gain":
            first = self._first.setdefault(tensor.key, numbers)
            numbers = {layer: n / first[layer] for layer, n in numbers.items() if layer in first}
        others = [number for layer, number in numbers.items() if layer not in tensor.new]
        if others:
            reference = median(others)
        else:
            reference = 1.0 if tensor.signal == "gain" else median(numbers.values() or [1.0])
        for layer in sorted(tensor.new & numbers.keys()):
            yield layer, numbers[layer] / reference


def _dying(tensor: Watched, found: Sequence[tuple[int, float, int]]) -> Dying:
    layers, shares, since = zip(*found, strict=True)
    return Dying(tensor.signal, tensor.key, [*layers], [*shares], min(since))
