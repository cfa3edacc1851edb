"""The operator ``explicit``."""

from dataclasses import dataclass, field
from typing import ClassVar

from megatron_grow.config.errors import UserError
from megatron_grow.config.model import ModelConfig
from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.state.maps import FRESH, Gather


@dataclass(frozen=True)
class Explicit(DepthOperator):
    """Name the source of every layer, as mergekit's passthrough merges do.

    Not function-preserving in general.
    """

    name: ClassVar[str] = "explicit"
    least_source_layers: ClassVar[int] = 0

    layers: list[int] = field(default_factory=list)
    """For each layer of the target, the source's layer that it copies; -1: fresh."""

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

    def layer_map(self, source: int, target: int) -> Gather:
        """As named."""
        return Gather(tuple(self.layers))
