"""The operator ``regroup``."""

from dataclasses import dataclass
from typing import ClassVar

from megatron_grow.config.errors import UserError
from megatron_grow.config.model import ModelConfig
from megatron_grow.operators.base import Draw, Operator
from megatron_grow.state.axes import LogicalTensor
from megatron_grow.state.maps import FRESH, Gather


@dataclass(frozen=True)
class Regroup(Operator):
    """Deal the same query heads into more or fewer key/value groups.

    More groups (GQA to MHA) copy keys and values: function-preserving. Fewer (MHA to GQA, Ainslie
    et al. 2023, arXiv 2305.13245) average those of the groups that become one: exact only if they
    are equal.
    """

    name: ClassVar[str] = "regroup"

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
        """One term for each place that a group can have among those that it came from."""
        return self._draws(
            tensor, source, target, min(1.0, target.query_groups / source.query_groups)
        )

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Copies of a key divide its gradient among them, equally on average."""
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
        names = {axis.name for axis in tensor.axes}
        if "kv_group" not in names:
            return [{}]
        before, after = source.query_groups, target.query_groups
        queries, old_queries = (m.num_attention_heads // m.query_groups for m in (target, source))
        places = max(before, after) // min(before, after)
        draws: list[Draw] = []
        for place in range(places):
            if after > before:
                groups = tuple(g // places if g % places == place else FRESH for g in range(after))
                heads = tuple(place * queries + i for i in range(queries))
            else:
                groups = tuple(g * places + place for g in range(after))
                heads = tuple(
                    i - place * old_queries if i // old_queries == place else FRESH
                    for i in range(queries)
                )
            if "query_head" in names:
                draws.append({"kv_group": Gather(groups), "query_head": Gather(heads)})
                continue
            both = (old_queries, old_queries + 1)
            scale = (*[1.0] * queries, factor, factor)
            draws.append({"kv_group": Gather(groups), "qkv_head": Gather((*heads, *both), scale)})
        return draws
