"""The operator ``explicit``."""

from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.state.axis_map import FRESH, AxisMap
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class Explicit(DepthOperator):
    """Name the source of every layer, as mergekit's passthrough merges do.

    Function-preserving if the layers that are not in ``zero`` are the source's, once each, in their
    order and at a scale of 1.
    """

    least_source_layers: ClassVar[int] = 0

    layers: list[int] = field(default_factory=list)
    """For each layer of the target, the source's layer that it copies; -1: fresh."""
    zero: list[int] = field(default_factory=list)
    """Layers of the target that add nothing at first: both of their output projections are zero."""
    scale: list[float] = field(default_factory=list)
    """For each layer of the target, a factor on its two output projections; absent: 1."""

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """One known layer for each."""
        super().check(source, target, where)
        if len(self.layers) != target.num_layers:
            raise UserError(
                f"{where}.layers names {len(self.layers)} layers; the target has "
                f"num_layers={target.num_layers}"
            )
        for layer in self.layers:
            if not FRESH <= layer < source.num_layers:
                raise UserError(
                    f"{where}.layers names layer {layer}; the source has 0 to "
                    f"{source.num_layers - 1}, and -1 is a fresh one"
                )
        for layer in self.zero:
            if not 0 <= layer < target.num_layers:
                raise UserError(
                    f"{where}.zero names layer {layer}; the target has 0 to {target.num_layers - 1}"
                )
        if self.scale and len(self.scale) != target.num_layers:
            raise UserError(
                f"{where}.scale has {len(self.scale)} numbers; the target has "
                f"num_layers={target.num_layers}"
            )
        for factor in self.scale:
            if not isfinite(factor):
                raise UserError(f"{where}.scale has {factor}; it must be a finite number")

    def layer_map(self, source: int, target: int) -> Gather:
        """As named."""
        return Gather(tuple(self.layers))

    def silent(self, source: int, target: int) -> tuple[bool, ...]:
        """Those in ``zero``."""
        return tuple(layer in self.zero for layer in range(target))

    def layer_weights(self, tensor: LogicalTensor, layers: AxisMap) -> AxisMap:
        """Where a residual branch ends: scaled, or zero."""
        if not tensor.ends_branch:
            return layers
        return Gather(self._drawn, self._factors, zero=tuple(self.zero))

    def layer_gradients(self, tensor: LogicalTensor, layers: AxisMap) -> AxisMap:
        """What is inside a layer sees the scale of its outputs; nothing arrives through zeros."""
        return Gather(self._drawn, None if tensor.ends_branch else self._factors)

    def caveat(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """None if only layers that add nothing are new."""
        kept = [
            (layer, self.scale[i] if self.scale else 1.0)
            for i, layer in enumerate(self.layers)
            if i not in self.zero
        ]
        if kept != [(layer, 1.0) for layer in range(source.num_layers)]:
            return super().caveat(source, target)
        return self.stream_caveat(source, target)

    @property
    def _drawn(self) -> tuple[int, ...]:
        return tuple(FRESH if i in self.zero else n for i, n in enumerate(self.layers))

    @property
    def _factors(self) -> tuple[float, ...] | None:
        return tuple(self.scale) or None
