"""The operator ``lemon``."""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.expansion import Expansion
from megatron_grow.operators.indices import cyclic, even_shares, uneven_shares
from megatron_grow.operators.units.base import UnitOperator, epsilon_caveat
from megatron_grow.state.axis_map import FRESH, Noise
from megatron_grow.state.tensors import ZERO

_WHOLE = "a whole factor needs no padding"


@dataclass(frozen=True)
class Lemon(UnitOperator):
    """Copy all units as often as they fit, with uneven shares, and pad the rest.

    LEMON (Wang et al. 2023, arXiv 2310.07999). Function-preserving for any target: hidden units
    that no whole copy fills are the mean of the others under LayerNorm and zero under RMSNorm,
    neither of which the norm passes on, and its gain makes up for the changed variance (its
    epsilon must, too: the plan says which). Uneven shares let copies learn apart; along the hidden
    size they pass through norms, so that carried moments of rows are right on average only. No
    padding is the mean where LayerNorm sees what an activation gives, or what a norm gives.
    """

    split: float | Literal["random"] = 0.6
    """What the first copy gets, the others get equal parts of the rest; or ``random``, as in the
    authors' code: each weight is split in parts that differ by what a fresh weight would be."""

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """Besides: a share is a share."""
        super().check(source, target, where)
        if self.split != "random" and not 0.0 < self.split < 1.0:
            raise UserError(f"{where}.split={self.split} must lie between 0 and 1, or be random")

    def expand(self, axis: str, source: int, target: int, model: ModelConfig) -> Expansion:
        """0 1 -> 0 1 0 1 *."""
        copied = target // source * source
        index = (*cyclic(source, copied), *[FRESH] * (target - copied))
        ones = (1.0,) * (target - copied)
        noise = None
        if self.split == "random":
            share = (*even_shares(index[:copied]), *ones)
            if copied > source:
                copies = tuple(i % source if i < copied else i for i in range(target))
                noise = Noise(copies, level=1.0)
        else:
            share = (*uneven_shares(index[:copied], self.split), *ones)
        if axis != "hidden":
            return Expansion(index, share=share, new_columns=ZERO, noise=noise)
        return Expansion(
            index,
            share=share,
            new_rows=ZERO,
            mean_rows=model.normalization == "LayerNorm" and copied < target,
            noise=noise,
            gain=sqrt(copied / target),
        )

    def caveat(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """Besides: the mean that LayerNorm subtracts, and the norms' epsilon."""
        if reason := super().caveat(source, target):
            return reason
        padded = self.key == "width" and target.hidden_size % source.hidden_size
        if padded and target.normalization == "LayerNorm":
            if self.post_norm:
                return (
                    "padding must be the mean of the other hidden units, but norms of the residual "
                    f"stream make it a constant (post-norm); {_WHOLE}"
                )
            if any(rule.activated for rule in self.sizes):
                return (
                    "padding must be the mean of the other units, and a head's norm sees them "
                    f"behind an activation; {_WHOLE}"
                )
        kept = target.hidden_size // source.hidden_size * source.hidden_size / target.hidden_size
        return epsilon_caveat(source, target, kept) if self.key == "width" else None
