"""What every growth operator is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from megatron_grow.config.errors import UserError
from megatron_grow.state.axes import LogicalTensor
from megatron_grow.state.maps import Gather, Identity, TensorMap, Term


@dataclass(frozen=True)
class DepthOperator(ABC):
    """Grows the ``layer`` axis.

    An operator's dataclass fields are its options in a run file; its docstring says what it does,
    whether it preserves the function, and where it was published.
    """

    name: ClassVar[str]
    preserves_function: ClassVar[bool] = False
    least_source_layers: ClassVar[int] = 1

    def check(self, source: int, target: int, where: str) -> None:
        """Raise :class:`UserError`, beginning with ``where``, if the growth is impossible."""
        if source < self.least_source_layers:
            raise UserError(
                f"{where}: {self.name} copies layers and needs a source of at least "
                f"{self.least_source_layers}; the stage before has num_layers={source}; use random "
                "or zero"
            )

    @abstractmethod
    def layers(self, source: int, target: int) -> Gather:
        """For each of ``target`` layers, which of ``source`` layers it copies, or ``FRESH``."""

    def weights(self, tensor: LogicalTensor, source: int) -> TensorMap:
        """How ``tensor``, stacked over the target's layers, is made from ``source`` layers."""
        return gather_layers(tensor, self.layers(source, tensor.axes[0].size))

    def gradients(self, tensor: LogicalTensor, source: int) -> TensorMap:
        """How the gradient of ``tensor``, and so a carried moment, follows from the source's."""
        return self.weights(tensor, source)


def gather_layers(tensor: LogicalTensor, layers: Gather) -> TensorMap:
    """The map that draws whole layers and leaves all other axes as they are."""
    inner = (Identity(),) * (len(tensor.axes) - 1)
    return TensorMap(tensor, (Term(tensor.key, (layers, *inner)),), tensor.init)
