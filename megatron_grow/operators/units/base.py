"""Operators that work alike along the hidden size, the heads and the feed-forward units."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.expansion import AxisOperator, Expansion


@dataclass(frozen=True)
class UnitOperator(AxisOperator):
    """Grows hidden units (``width``), heads (``heads``) or feed-forward units (``ffn``).

    It grows all axes whose row of the axis table names the key, an architecture's own among them.
    Heads grow by more key/value groups, or by more query heads in each group, or both; a head's own
    size stays. A group's query heads stay with its key and value head.
    """

    keys: ClassVar[tuple[str, ...]] = ("width", "heads", "ffn")
    whole_factor: ClassVar[bool] = False
    """Whether the target must be a multiple of the source."""

    @abstractmethod
    def expand(self, axis: str, source: int, target: int, model: ModelConfig) -> Expansion:
        """How ``source`` units of ``axis`` become the ``target`` of ``model``."""

    def caveat_along(self, axis: str, source: int, target: int, model: ModelConfig) -> str | None:
        """Why growth along ``axis`` changes the function; None if it does not."""
        return None

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """Refuse what it cannot grow."""
        if self.key == "heads" and source.head_dim != target.head_dim:
            raise UserError(
                f"{where}: {self.name} keeps the size of a head, which goes from {source.head_dim} "
                f"to {target.head_dim} (hidden_size / num_attention_heads, unless kv_channels says "
                "otherwise); set model.kv_channels or use head_size"
            )
        for axis, before, after in self._leading():
            if after < before:
                raise UserError(
                    f"{where}: {axis} would go from {before} to {after}; a run only grows"
                )
            if self.whole_factor and after % before:
                raise UserError(
                    f"{where}: {self.name} needs a whole factor along {axis}, not "
                    f"{before} -> {after}; {after // before * before} or "
                    f"{(after // before + 1) * before} would be possible"
                )

    def expansions(self, source: ModelConfig, target: ModelConfig) -> list[dict[str, Expansion]]:
        """Each axis that grows; query heads as rows of QKV and as columns of the projection."""
        found = {
            axis: self.expand(axis, before, after, target)
            for axis, before, after in self._leading()
        }
        for rule, (before, _) in self.sizes.items():
            if rule.follows:
                found[rule.name] = _continued(found[rule.follows], before)
        return [found]

    def caveat(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """The first reason, if any."""
        for axis, before, after in self._leading():
            if reason := self.caveat_along(axis, before, after, target):
                return reason
        return None

    def _leading(self) -> Iterator[tuple[str, int, int]]:
        """Name, size before and after of each axis that does not follow another."""
        for rule, (before, after) in self.sizes.items():
            if not rule.follows:
                yield rule.name, before, after


def epsilon_caveat(source: ModelConfig, target: ModelConfig, kept: float) -> str | None:
    """Why padding by units that norms see as zero changes the function, if it does.

    Args:
        source: the shape before.
        target: the shape after.
        kept: share of the target's hidden units that are not padding; variances shrink by it.
    """
    needed = source.layernorm_epsilon * kept
    if kept == 1.0 or abs(target.layernorm_epsilon / needed - 1) < 1e-6:
        return None
    return (
        f"variances shrink by {kept:.4g} and layernorm_epsilon={target.layernorm_epsilon:g} does "
        f"not; with {needed:.6g} in the target the function is kept"
    )


def _continued(followed: Expansion, size: int) -> Expansion:
    """The same along an axis of ``size`` that has more entries behind, which stay: a key, say."""
    kept = range(max(followed.index) + 1, size)

    def more(factors: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if factors is None else (*factors, *(1.0 for _ in kept))

    return replace(
        followed,
        index=(*followed.index, *kept),
        scale=more(followed.scale),
        share=more(followed.share),
    )
