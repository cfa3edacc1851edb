"""The operator ``regroup``."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.base import Draw, Operator
from megatron_grow.state.axis_map import FRESH
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.mixes import Dense
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class Regroup(Operator):
    """Deal the same query heads into more or fewer key/value groups.

    More groups (GQA to MHA) copy keys and values: function-preserving. Fewer (MHA to GQA, Ainslie
    et al. 2023, arXiv 2305.13245) average those of the groups that become one: exact only if they
    are equal.
    """

    keys: ClassVar[tuple[str, ...]] = ("heads",)

    def axes(self, source: ModelConfig, target: ModelConfig) -> set[str]:
        """Groups, and the heads in each."""
        return {"kv_group", "query_head", "qkv_head"}

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """Same query heads; one number of groups divides the other."""
        if source.num_attention_heads != target.num_attention_heads:
            raise UserError(
                f"{where}: regroup keeps the query heads, not {source.num_attention_heads} -> "
                f"{target.num_attention_heads}; grow them in a stage of their own"
            )
        before, after = source.query_groups, target.query_groups
        if max(before, after) % min(before, after) or before == after:
            raise UserError(
                f"{where}: num_query_groups {before} -> {after} must go up or down by a whole "
                "factor"
            )

    def weights(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Keys and values are copied, or averaged."""
        return self._draws(
            tensor, source, target, min(1.0, target.query_groups / source.query_groups)
        )

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Copies of a key divide its gradient among them, equally on average; those of keys that
        become one add up."""
        return self._draws(
            tensor, source, target, min(1.0, source.query_groups / target.query_groups)
        )

    def caveat(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """Averages lose what differed."""
        if target.query_groups > source.query_groups:
            return None
        return "keys and values of the groups that become one are averaged"

    def _draws(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig, factor: float
    ) -> list[Draw]:
        """Keys and values are ``factor`` times a copy, or a sum."""
        names = {axis.name for axis in tensor.axes}
        if "kv_group" not in names:
            return [{}]
        queries = _queries(source, target)
        if "query_head" in names:
            return [{"kv_group": g, "query_head": Gather(heads)} for g, heads in queries]
        # Of a group's heads of QKV the last two are its key and its value.
        draws: list[Draw] = [
            {"kv_group": groups, "qkv_head": Gather((*heads, FRESH, FRESH))}
            for groups, heads in queries
        ]
        before, after = (
            model.num_attention_heads // model.query_groups for model in (source, target)
        )
        shared = Gather((*[FRESH] * after, before, before + 1))
        groups = _shared(source.query_groups, target.query_groups, factor)
        return [*draws, {"kv_group": groups, "qkv_head": shared}]


def _queries(source: ModelConfig, target: ModelConfig) -> list[tuple[Gather, tuple[int, ...]]]:
    """For each place that a group can have among those that become one, or that one becomes: the
    group's source, and the source of each query head in it."""
    before, after = source.query_groups, target.query_groups
    old, new = (model.num_attention_heads // model.query_groups for model in (source, target))
    found = []
    for place in range(max(before, after) // min(before, after)):
        if after > before:
            factor = after // before
            groups = (g // factor if g % factor == place else FRESH for g in range(after))
            heads = tuple(range(place * new, place * new + new))
        else:
            groups = (g * (before // after) + place for g in range(after))
            heads = tuple(i % old if i // old == place else FRESH for i in range(new))
        found.append((Gather(tuple(groups)), heads))
    return found


def _shared(before: int, after: int, factor: float) -> Gather | Dense:
    """0 1 -> 0 0 1 1, or 0 1 2 3 -> 0+1 2+3, times ``factor``."""
    if after > before:
        return Gather(tuple(g * before // after for g in range(after)), (factor,) * after)
    # Summed before it is rounded: the mean of equal groups is each of them.
    matrix = torch.zeros(after, before, dtype=torch.float64)
    for group in range(before):
        matrix[group * after // before, group] = factor
    return Dense(matrix)
