"""The operator ``aki``."""

from dataclasses import dataclass, replace

from megatron_grow.config.model import ModelConfig
from megatron_grow.operators.base import Draw
from megatron_grow.operators.units.fpi import Fpi
from megatron_grow.state.axes import Role
from megatron_grow.state.axis_maps import FRESH, Gather
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
        draws: list[Draw] = []
        own = draw
        for name in rows:
            grown = own[name]
            assert isinstance(grown, Gather)
            original = grown.first_only()
            draws.append({**own, name: _without(grown, original), "layer": above})
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


def _without(grown: Gather, others: Gather) -> Gather:
    """``grown`` but for the entries that ``others`` draws."""
    pairs = zip(grown.index, others.index, strict=True)
    return replace(grown, index=tuple(i if other == FRESH else FRESH for i, other in pairs))
