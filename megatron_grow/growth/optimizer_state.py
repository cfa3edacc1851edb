"""What a growth does to optimizer state."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from megatron_grow.state.axes import Constant
from megatron_grow.state.maps import Gather, TensorMap

Policy = Literal["carry", "carry_old", "reset"]


def moment_map(gradient: TensorMap, policy: Policy) -> TensorMap:
    """The map of a tensor's moments, first or second.

    Args:
        gradient: how the tensor's gradient follows from the source's.
        policy: ``carry`` moves moments as gradients move; ``carry_old`` keeps, of entries that copy
            one source entry, only the first, which breaks the symmetry of copies (``[S, 0]`` of
            arXiv 2602.02472); ``reset`` keeps none.

    Entries without a source start at zero.
    """
    zero = replace(gradient, fresh=Constant(0.0))
    if policy == "carry":
        return zero
    if policy == "reset":
        return replace(zero, terms=())
    terms = tuple(
        replace(
            term,
            axes=tuple(
                axis.first_only() if isinstance(axis, Gather) else axis for axis in term.axes
            ),
        )
        for term in zero.terms
    )
    return replace(zero, terms=terms)
