"""What every depth operator is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.base import Draw, NewUnits, Operator
from megatron_grow.state.axis_map import FRESH, AxisMap
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class DepthOperator(Operator):
    """Grows the ``layer`` axis."""

    keys: ClassVar[tuple[str, ...]] = ("depth",)
    preserves_function: ClassVar[bool] = False
    least_source_layers: ClassVar[int] = 1
    """Fewest layers that it can grow from."""

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """Refuse to copy from a source without layers."""
        if source.num_layers < self.least_source_layers:
            raise UserError(
                f"{where}: {self.name} copies layers and needs a source of at least "
                f"{self.least_source_layers}; the stage before has num_layers={source.num_layers}; "
                "use random or zero"
            )

    @abstractmethod
    def layer_map(self, source: int, target: int) -> AxisMap:
        """For each of ``target`` layers, which of ``source`` layers it copies, or ``FRESH``."""

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
        """Layers that compute something are new."""
        return None if self.preserves_function else "new layers change what the model computes"

    def _draws(
        self,
        tensor: LogicalTensor,
        source: ModelConfig,
        target: ModelConfig,
        how: Callable[[LogicalTensor, AxisMap], AxisMap],
    ) -> list[Draw]:
        layers = self.layer_map(source.num_layers, target.num_layers)
        return [{"layer": how(tensor, layers)} if tensor.stacked else {}]
