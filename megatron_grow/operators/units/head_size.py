"""The operator ``head_size``."""

from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.base import Draw, Operator
from megatron_grow.operators.indices import padded
from megatron_grow.state.axis_map import FRESH
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.tensors import ZERO, LogicalTensor


@dataclass(frozen=True)
class HeadSize(Operator):
    """Enlarge every head; the number of heads stays.

    Function-preserving: queries grow by fresh rows, keys and values by zeros, so that no score
    changes; queries are multiplied by sqrt(new size / old size), which attention divides by. Under
    rotary positions a whole factor f puts dimension i at f x i, where the same frequency is.
    """

    keys: ClassVar[tuple[str, ...]] = ("heads",)

    def axes(self, source: ModelConfig, target: ModelConfig) -> set[str]:
        """The size, and which of a group's heads is a query."""
        return {"head_dim", "qkv_head"}

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """Refuse what would change the function."""
        before, after = source.head_dim, target.head_dim
        if after <= before:
            raise UserError(f"{where}: the size of a head would go from {before} to {after}")
        if (source.num_attention_heads, source.query_groups) != (
            target.num_attention_heads,
            target.query_groups,
        ):
            raise UserError(
                f"{where}: head_size keeps the number of heads; grow them in a stage of their own"
            )
        if target.qk_layernorm:
            raise UserError(f"{where}: head_size cannot keep what qk_layernorm computes")
        if target.position_embedding_type == "rope":
            if after % before:
                raise UserError(
                    f"{where}: under rotary positions a head grows by a whole factor, not "
                    f"{before} -> {after}; {after // before * before + before} would be possible"
                )
            if target.rotary_percent != 1.0:
                raise UserError(f"{where}: head_size needs rotary_percent=1.0")

    def weights(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Queries in one term, keys and values in another."""
        return self._draws(tensor, source, target, sqrt(target.head_dim / source.head_dim))

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """The factor of queries works the other way."""
        return self._draws(tensor, source, target, sqrt(source.head_dim / target.head_dim))

    def caveat(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """None."""
        return None

    def _draws(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig, factor: float
    ) -> list[Draw]:
        names = {axis.name for axis in tensor.axes}
        if "head_dim" not in names:
            return [{}]
        size = Gather(_dimensions(source, target))
        if "qkv_head" not in names:
            return [{"head_dim": size}]
        queries = target.num_attention_heads // target.query_groups
        none, both = (FRESH,) * queries, (queries, queries + 1)
        query = Gather((*range(queries), FRESH, FRESH), (factor,) * (queries + 2), fresh=ZERO)
        return [
            {"qkv_head": query, "head_dim": size},
            {"qkv_head": Gather((*none, *both)), "head_dim": replace(size, fresh=ZERO)},
        ]


def _dimensions(source: ModelConfig, target: ModelConfig) -> tuple[int, ...]:
    before, after = source.head_dim, target.head_dim
    if target.position_embedding_type != "rope":
        return padded(before, after)
    # Megatron rotates dimension i with i + size / 2, by a frequency that falls with i / size.
    index, factor = [FRESH] * after, after // before
    for half in (0, 1):
        for i in range(before // 2):
            index[half * after // 2 + factor * i] = half * before // 2 + i
    return tuple(index)
