"""The operator ``block_diagonal``."""

from dataclasses import dataclass, replace
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.base import Draw, Operator
from megatron_grow.operators.expansion import Expansion
from megatron_grow.operators.indices import cyclic
from megatron_grow.state.axes import Axis, Role
from megatron_grow.state.axis_map import FRESH
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.tensors import ZERO, LogicalTensor


@dataclass(frozen=True)
class BlockDiagonal(Operator):
    """Put two copies of the model side by side: W -> [[W, 0], [0, W]].

    The width operator of staged training (Shen et al. 2022, arXiv 2203.06211). Doubles the hidden
    size, heads and feed-forward units together. Function-preserving: the last norm, or an untied
    head, halves what the two copies add up to.
    """

    keys: ClassVar[tuple[str, ...]] = ("width",)

    def axes(self, source: ModelConfig, target: ModelConfig) -> set[str]:
        """All three at once, and what follows the hidden size."""
        return super().axes(source, target) | {"hidden", "kv_group", "ffn"}

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """Everything doubles."""
        needed = {
            "hidden_size": (source.hidden_size, target.hidden_size),
            "num_attention_heads": (source.num_attention_heads, target.num_attention_heads),
            "num_query_groups": (source.query_groups, target.query_groups),
            "ffn_hidden_size": (source.ffn_size, target.ffn_size),
        }
        for field, (before, after) in needed.items():
            if after != 2 * before:
                raise UserError(
                    f"{where}: block_diagonal doubles the whole width, but {field} goes from "
                    f"{before} to {after}; {2 * before} would be possible"
                )

    def weights(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Matrices as two blocks; what has one side doubled is repeated along it."""
        grown = self._grown(tensor, source, target)
        if not grown:
            return [{}]
        if len(grown) == 1:
            return [{grown[0].name: _twice(grown[0].size).weights(tensor, grown[0])}]
        return [{axis.name: half(axis.size) for axis in grown} for half in (_first, _second)]

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Half of the source's everywhere, but in what halves."""
        grown = self._grown(tensor, source, target)
        if not grown:
            return [{}]
        if len(grown) == 1:
            return [{grown[0].name: _twice(grown[0].size).gradients(tensor, grown[0])}]
        draws: list[Draw] = []
        for half in (_first, _second):
            draw: Draw = {}
            for axis in grown:
                map_ = half(axis.size)
                if axis.role is Role.PRODUCES:
                    map_ = replace(map_, scale=(0.5,) * axis.size)
                draw[axis.name] = map_
            draws.append(draw)
        return draws

    def _grown(self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig) -> list[Axis]:
        names = self.axes(source, target)
        return [axis for axis in tensor.axes if axis.name in names]

    def caveat(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """None: both halves compute what the source computed."""
        return None


def _twice(target: int) -> Expansion:
    return Expansion(cyclic(target // 2, target), share=(0.5,) * target)


def _first(target: int) -> Gather:
    return Gather((*range(target // 2), *[FRESH] * (target // 2)), fresh=ZERO)


def _second(target: int) -> Gather:
    return Gather((*[FRESH] * (target // 2), *range(target // 2)), fresh=ZERO)
