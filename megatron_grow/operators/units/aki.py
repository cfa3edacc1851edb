"""The operator ``aki``."""

from dataclasses import dataclass

from megatron_grow.config.model import ModelConfig
from megatron_grow.operators.base import Draw
from megatron_grow.operators.units.fpi import Fpi
from megatron_grow.state.axes import Role
from megatron_grow.state.axis_map import FRESH
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class Aki(Fpi):
    """As ``fpi``, but rows that produce copied units come from the layer above.

    The advanced knowledge initialisation of bert2BERT (arXiv 2110.07143): neither function nor
    symmetry is preserved, and training ends better. The last layer's come from itself. A head of a
    new group is all from above, its key and value included; of a new query head in an old group
    the query alone, since it reads the group's own keys and values.
    """

    def weights(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Originals from this layer; for each axis of rows, its copies from the next."""
        (draw,) = super().weights(tensor, source, target)
        rows = [axis.name for axis in tensor.axes if axis.role is Role.PRODUCES]
        rows = [name for name in rows if name in draw]
        if not rows or tensor.norm or not tensor.stacked:
            return [draw]
        last = source.num_layers - 1
        above = Gather(tuple(min(layer + 1, last) for layer in range(source.num_layers)))
        (grown,) = self.expansions(source, target)
        draws: list[Draw] = []
        own = draw
        for name in rows:
            original, copies = _apart(grown[name].index)
            draws.append({**own, name: copies, "layer": above})
            own = {**own, name: original}
        return [own, *draws]

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Only of originals: copied rows stand in other surroundings."""
        (draw,) = super().gradients(tensor, source, target)
        return [{name: how.first_only() for name, how in draw.items()}]

    def caveat_along(self, axis: str, source: int, target: int, model: ModelConfig) -> str | None:
        """By design."""
        return "copies compute what the layer above computes"


def _apart(index: tuple[int, ...]) -> tuple[Gather, Gather]:
    """The first copy of each entry; and the others."""
    first = Gather(index).first_only()
    pairs = zip(index, first.index, strict=True)
    return first, Gather(tuple(i if kept == FRESH else FRESH for i, kept in pairs))
