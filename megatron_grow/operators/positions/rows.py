"""The operators of ``positions``: rows of a learned position embedding beyond the source's."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.base import Draw, Operator
from megatron_grow.operators.indices import cyclic, interpolation, padded
from megatron_grow.state.axis_map import AxisMap
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.mixes import Dense
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class PositionOperator(Operator):
    """Grows ``max_position_embeddings``; rotary positions have no rows and need none."""

    keys: ClassVar[tuple[str, ...]] = ("positions",)

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """More, and learned."""
        if target.position_embedding_type != "learned_absolute":
            raise UserError(f"{where}: rotary positions have no rows to grow; leave it out")

    @abstractmethod
    def rows(self, source: int, target: int, reserved: int) -> AxisMap:
        """Where each of ``target`` rows comes from, of which the first ``reserved`` stay."""

    def weights(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """The position embedding alone has them."""
        sizes = (source.max_position_embeddings, target.max_position_embeddings)
        return [
            {
                axis.name: self.rows(*sizes, axis.reserved)
                for axis in tensor.axes
                if axis.name == "position"
            }
        ]

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Old positions keep theirs."""
        rows = padded(source.max_position_embeddings, target.max_position_embeddings)
        return [{axis.name: Gather(rows) for axis in tensor.axes if axis.name == "position"}]

    def caveat(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """None: sequences of the old length see the old rows."""
        return None


class PositionCopy(PositionOperator):
    """Repeat the source's positions."""

    def rows(self, source: int, target: int, reserved: int) -> Gather:
        """p0 p1 -> p0 p1 p0 p1."""
        copied = cyclic(source - reserved, target - reserved)
        return Gather((*range(reserved), *(reserved + row for row in copied)))


class PositionRandom(PositionOperator):
    """Draw new positions."""

    def rows(self, source: int, target: int, reserved: int) -> Gather:
        """p0 p1 -> p0 p1 * *."""
        return Gather(padded(source, target))


class PositionInterpolate(PositionOperator):
    """Stretch the source's positions over the new length, linearly.

    Not function-preserving: a position now means another distance.
    """

    def rows(self, source: int, target: int, reserved: int) -> Dense:
        """First and last stay."""
        stretched = interpolation(source - reserved, target - reserved)
        kept = torch.eye(reserved, dtype=torch.float64)
        return Dense(torch.block_diag(kept, stretched))

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """As the rows."""
        return self.weights(tensor, source, target)

    def caveat(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """All positions move."""
        return "positions are stretched"
