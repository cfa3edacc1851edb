"""The operator ``aki``."""

from dataclasses import dataclass
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.operators.base import Draw
from megatron_grow.operators.units.fpi import Fpi
from megatron_grow.state.axes import LogicalTensor, Role
from megatron_grow.state.maps import FRESH, Gather


@dataclass(frozen=True)
class Aki(Fpi):
    """As ``fpi``, but rows that produce copied units come from the layer above.

    The advanced knowledge initialisation of bert2BERT (arXiv 2110.07143): neither function nor
    symmetry is preserved, and training ends better. The last layer's come from itself.
    """

    name: ClassVar[str] = "aki"

    def weights(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Two terms for rows: originals from this layer, copies from the next."""
        (draw,) = super().weights(tensor, source, target)
        rows = [
            axis.name
            for axis in tensor.axes
            if axis.name in draw and axis.role is Role.PRODUCES and not tensor.norm
        ]
        if not rows or not tensor.stacked or source.num_layers == 0:
            return [draw]
        (name,) = rows
        grown = draw[name]
        assert isinstance(grown, Gather)
        before = max(grown.index) + 1
        old, new = list(grown.index), list(grown.index)
        for i in range(len(grown.index)):
            (new if i < before else old)[i] = FRESH
        above = tuple(min(layer + 1, source.num_layers - 1) for layer in range(source.num_layers))
        return [
            {**draw, name: Gather(tuple(old))},
            {**draw, name: Gather(tuple(new)), "layer": Gather(above)},
        ]

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Only of originals: copied rows stand in other surroundings."""
        (draw,) = super().gradients(tensor, source, target)
        return [
            {
                name: how.first_only() if isinstance(how, Gather) else how
                for name, how in draw.items()
            }
        ]

    def caveat_along(self, axis: str, source: int, target: int, model: ModelConfig) -> str | None:
        """By design."""
        return "copies compute what the layer above computes"
