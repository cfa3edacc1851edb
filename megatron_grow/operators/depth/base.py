"""What every depth operator is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import shown
from megatron_grow.operators.base import Draw, NewUnits, Operator
from megatron_grow.operators.depth import silent
from megatron_grow.state.axis_map import FRESH, AxisMap
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class DepthOperator(Operator):
    """Grows the ``layer`` axis.

    It says where each layer of the model comes from; whoever plans makes of that where each unique
    layer does, if layers share their parameters.
    """

    keys: ClassVar[tuple[str, ...]] = ("depth",)
    preserves_function: ClassVar[bool] = False
    """Whether layers that copy none, or one that another copies already, add nothing at first."""
    least_source_layers: ClassVar[int] = 1
    """Fewest layers that it can grow from."""
    keeps_depth: ClassVar[bool] = False
    """Whether it changes which layers are one, and not how many layers there are."""

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """Refuse to copy from a source without layers, and what is another operator's affair."""
        if source.num_layers < self.least_source_layers:
            raise UserError(
                f"{where}: {self.name} copies layers and needs a source of at least "
                f"{self.least_source_layers}; the stage before has num_layers={source.num_layers}; "
                "use random or zero"
            )
        before, after = source.num_layers, target.num_layers
        if self.keeps_depth and before != after:
            raise UserError(
                f"{where}: {self.name} keeps num_layers, which goes from {before} to {after}; give "
                "it a stage of its own, or take an operator that copies layers"
            )
        if before == after and not self.keeps_depth:
            raise UserError(
                f"{where}: {self.name} grows num_layers, which stays {after}; what leads from "
                f"model.layer_sharing={shown(source.layer_sharing)} to "
                f"{shown(target.layer_sharing)} is unshare"
            )

    @abstractmethod
    def layer_map(self, source: int, target: int) -> AxisMap:
        """For each of ``target`` layers, which of ``source`` layers it copies, or ``FRESH``."""

    def silent(self, source: int, target: int) -> tuple[bool, ...]:
        """For each of ``target`` layers, whether its branches add nothing at first."""
        if not self.preserves_function:
            return (False,) * target
        first = self.layer_map(source, target).first_only().copied(target)
        return tuple(layer == FRESH for layer in first)

    def layer_weights(self, tensor: LogicalTensor, layers: AxisMap) -> AxisMap:
        """``layers``, as it applies to ``tensor``."""
        return layers

    def layer_gradients(self, tensor: LogicalTensor, layers: AxisMap) -> AxisMap:
        """The same for its gradient."""
        return self.layer_weights(tensor, layers)

    def weights(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Whole layers; all other axes stay as they are."""
        return self._draws(tensor, source, target, self.layer_weights)

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Whole layers."""
        return self._draws(tensor, source, target, self.layer_gradients)

    def new_units(self, source: ModelConfig, target: ModelConfig) -> NewUnits:
        """Layers that copy none."""
        layers = self.layer_map(source.num_layers, target.num_layers)
        return {"layer": tuple(i == FRESH for i in layers.copied(target.num_layers))}

    def caveat(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """Layers that compute something are new, or norms of the stream change it."""
        if not self.preserves_function:
            return "new layers change what the model computes"
        return self.stream_caveat(source, target)

    def stream_caveat(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """Why layers that add nothing change the function all the same; None if they do not."""
        adds_nothing = self.silent(source.num_layers, target.num_layers)
        return silent.caveat(target, adds_nothing) if self.post_norm else None

    def _draws(
        self,
        tensor: LogicalTensor,
        source: ModelConfig,
        target: ModelConfig,
        how: Callable[[LogicalTensor, AxisMap], AxisMap],
    ) -> list[Draw]:
        if not tensor.stacked:
            return [{}]
        sizes = (source.num_layers, target.num_layers)
        layers, adds_nothing = self.layer_map(*sizes), self.silent(*sizes)
        if tensor.stream_norm and any(adds_nothing):
            copied = layers.copied(target.num_layers)
            return [{"layer": silent.stream_norm(tensor, copied, adds_nothing)}]
        return [{"layer": how(tensor, layers)}]
