"""The operator ``mix``."""

from dataclasses import dataclass, field

import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.operators.indices import interpolation
from megatron_grow.state.mixes import Dense


@dataclass(frozen=True)
class Mix(DepthOperator):
    """Make every layer a linear mix of the source's.

    The depth half of LiGO (Wang et al. 2023, arXiv 2303.00980) with given weights; without any, a
    linear interpolation between neighbours. Not function-preserving.
    """

    matrix: list[list[float]] = field(default_factory=list)
    """A row for each layer of the target, a column for each of the source."""

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """The matrix fits."""
        super().check(source, target, where)
        shape = (len(self.matrix), {len(row) for row in self.matrix})
        if self.matrix and shape != (target.num_layers, {source.num_layers}):
            raise UserError(
                f"{where}.matrix must have {target.num_layers} rows (layers of the target) of "
                f"{source.num_layers} numbers (layers of the source)"
            )

    def layer_map(self, source: int, target: int) -> Dense:
        """The matrix, or interpolation from the first layer to the last."""
        if self.matrix:
            return Dense(torch.tensor(self.matrix, dtype=torch.float64))
        return Dense(interpolation(source, target))
