"""How an axis of the activations grows, and what follows for the weights on either side of it."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_grow.config.model import ModelConfig
from megatron_grow.operators.base import Draw, NewUnits, Operator
from megatron_grow.state.axes import Axis, Role
from megatron_grow.state.axis_maps import FRESH, AxisMap, Gather, Noise, Padded, mean
from megatron_grow.state.tensors import Constant, Init, LogicalTensor


@dataclass(frozen=True)
class Expansion:
    """Target activation i is ``scale[i]`` times source activation ``index[i]``.

    Who produces activation i draws its row from row ``index[i]``, times ``scale[i]``; who consumes
    it draws its column from column ``index[i]``, times ``share[i]``. The function stays if the
    shares, times the scales, of the copies of each source entry add up to 1. Gradients follow the
    same indices with the two factors exchanged: what reaches activation i is ``share[i]`` of what
    reached its source, and what a column sees is ``scale[i]`` times what its source saw.
    """

    index: tuple[int, ...]
    scale: tuple[float, ...] | None = None
    share: tuple[float, ...] | None = None
    new_rows: Init | None = None
    """How rows that produce new activations are made; None: as the tensor's own init says."""
    new_columns: Init | None = None
    """The same for columns that consume them."""
    mean_rows: bool = False
    """New activations, all of them at the end, are the mean of the source's."""
    noise: Noise | None = None
    """On the columns of matrices in layers that consume; an embedding or a head gets none."""
    gain: float = 1.0
    """Factor on the gains of norms over this axis, whose statistics new activations change."""

    def weights(self, tensor: LogicalTensor, axis: Axis) -> AxisMap:
        """How ``axis`` of ``tensor`` is drawn."""
        factor = self.gain if tensor.norm == "gain" else 1.0
        if axis.role is Role.CONSUMES:
            share = _times(self.share, len(self.index), factor)
            if tensor.norm:
                return Gather(self.index, share)
            noise = self.noise if gets_noise(tensor, axis) else None
            return Gather(self.index, share, self.new_columns, noise=noise)
        new = None if tensor.norm else self.new_rows
        rows = Gather(self.index, _times(self.scale, len(self.index), factor), new)
        if self.mean_rows and axis.role is Role.PRODUCES and not tensor.norm:
            kept = self.index.index(FRESH)
            rows = Gather(self.index[:kept], rows.scale and rows.scale[:kept], new)
            return Padded(rows, mean(max(self.index) + 1))
        return rows

    def gradients(self, tensor: LogicalTensor, axis: Axis) -> AxisMap:
        """How the gradient along ``axis`` of ``tensor`` follows."""
        factor = 1 / self.gain if tensor.norm == "gain" else 1.0
        factors = {Role.CONSUMES: self.scale, Role.PRODUCES: self.share, Role.INDEX: None}
        return Gather(self.index, _times(factors[axis.role], len(self.index), factor))


def gets_noise(tensor: LogicalTensor, axis: Axis) -> bool:
    """Whether ``axis`` of ``tensor`` is that of the columns of a matrix in a layer."""
    return axis.role is Role.CONSUMES and tensor.stacked and not tensor.norm


def _times(factors: tuple[float, ...] | None, size: int, factor: float) -> tuple[float, ...] | None:
    if factor == 1.0:
        return factors
    return tuple(each * factor for each in factors or (1.0,) * size)


class AxisOperator(Operator):
    """Grows axes of the activations."""

    @abstractmethod
    def expansions(self, source: ModelConfig, target: ModelConfig) -> dict[str, Expansion]:
        """How each of its axes grows, by name."""

    def new_units(self, source: ModelConfig, target: ModelConfig) -> NewUnits:
        """Those that copy none."""
        return {
            name: tuple(i == FRESH for i in found.index)
            for name, found in self.expansions(source, target).items()
        }

    def weights(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Each axis for itself."""
        found = self.expansions(source, target)
        return [
            {
                axis.name: found[axis.name].weights(tensor, axis)
                for axis in tensor.axes
                if axis.name in found
            }
        ]

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Each axis for itself."""
        found = self.expansions(source, target)
        return [
            {
                axis.name: found[axis.name].gradients(tensor, axis)
                for axis in tensor.axes
                if axis.name in found
            }
        ]


def cyclic(source: int, target: int) -> tuple[int, ...]:
    """0 1 2 -> 0 1 2 0 1 2 0."""
    return tuple(i % source for i in range(target))


def random_map(source: int, target: int, seed: int) -> tuple[int, ...]:
    """The source in order, then random entries of it (Net2Net, bert2BERT's FPI)."""
    more = np.random.default_rng(seed).integers(0, source, target - source)
    return (*range(source), *more.tolist())


def padded(source: int, target: int) -> tuple[int, ...]:
    """The source in order, then fresh entries."""
    return (*range(source), *[FRESH] * (target - source))


def even_shares(index: Sequence[int]) -> tuple[float, ...]:
    """Of n copies, each gets 1/n."""
    copies = Counter(index)
    return tuple(1 / copies[i] for i in index)


def uneven_shares(index: Sequence[int], first: float) -> tuple[float, ...]:
    """Of several copies the first gets ``first``, and the others the same parts of the rest."""
    copies, seen = Counter(index), set()
    shares = []
    for i in index:
        rest = (1 - first) / max(copies[i] - 1, 1)
        shares.append(1.0 if copies[i] == 1 else rest if i in seen else first)
        seen.add(i)
    return tuple(shares)


ZERO = Constant(0.0)
