"""How an axis of the activations grows, and what follows for the weights on either side of it."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from megatron_grow.config.model import ModelConfig
from megatron_grow.operators.base import Draw, NewUnits, Operator
from megatron_grow.state.axes import Axis, Role
from megatron_grow.state.axis_map import FRESH, AxisMap, Noise
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.mixes import Padded, mean
from megatron_grow.state.tensors import Init, LogicalTensor


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

    def parts(self) -> dict[int, float]:
        """What the copies of each source entry pass on of it, together."""
        ones = (1.0,) * len(self.index)
        passed: dict[int, float] = defaultdict(float)
        for entry, scale, share in zip(
            self.index, self.scale or ones, self.share or ones, strict=True
        ):
            passed[entry] += scale * share
        return passed


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
    def expansions(self, source: ModelConfig, target: ModelConfig) -> list[dict[str, Expansion]]:
        """How each of its axes grows, by name: a sum of draws, mostly of one.

        Each draw may take some of the source's layers, by an expansion of ``layer``.
        """

    def new_units(self, source: ModelConfig, target: ModelConfig) -> NewUnits:
        """Those that copy none; of axes that follow another, nothing that this does not say."""
        flags: NewUnits = {}
        for rule in self.sizes:
            if rule.follows:
                continue
            copied = [found[rule.name].index for found in self.expansions(source, target)]
            flags[rule.name] = tuple(set(units) == {FRESH} for units in zip(*copied, strict=True))
        return flags

    def loses(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """A source entry whose copies get more or less than all of it, in some layer."""
        draws = self.expansions(source, target)
        layers = range(source.num_layers if any("layer" in found for found in draws) else 1)
        passed: dict[tuple[str, int], dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for found in draws:
            drawn = set(found["layer"].index) - {FRESH} if "layer" in found else layers
            for name in found.keys() - {"layer"}:
                parts = found[name].parts()
                for layer in drawn:
                    for entry, part in parts.items():
                        passed[name, layer][entry] += part
        for (name, _), sums in passed.items():
            for entry in range(max(sums) + 1):
                if abs(sums[entry] - 1) > 1e-6:
                    return (
                        f"the shares of the copies of {name} {entry}, times their scales, add up "
                        f"to {sums[entry]:.6g}, not to 1"
                    )
        return None

    def weights(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Each axis for itself."""
        return self._draws(tensor, source, target, Expansion.weights)

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Each axis for itself."""
        return self._draws(tensor, source, target, Expansion.gradients)

    def _draws(
        self,
        tensor: LogicalTensor,
        source: ModelConfig,
        target: ModelConfig,
        how: Callable[[Expansion, LogicalTensor, Axis], AxisMap],
    ) -> list[Draw]:
        grown = self.axes(source, target)
        if not any(axis.name in grown for axis in tensor.axes):
            return [{}]
        return [
            {a.name: how(found[a.name], tensor, a) for a in tensor.axes if a.name in found}
            for found in self.expansions(source, target)
        ]
