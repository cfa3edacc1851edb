"""What a growth does to optimizer state."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from megatron_grow.state.maps import TensorMap, Term
from megatron_grow.state.tensors import ZERO

Policy = Literal["carry", "carry_old", "reset"]


def moment_map(gradient: TensorMap, policy: Policy, power: int) -> TensorMap:
    """The map of one kind of optimizer state of a tensor.

    Args:
        gradient: how the tensor's gradient follows from the source's.
        policy: ``carry`` moves moments as gradients move; ``carry_old`` keeps, of entries that copy
            one source entry, only the first, which breaks the symmetry of copies (``[S, 0]`` of
            arXiv 2602.02472); ``reset`` keeps none.
        power: of the gradient, that this kind carries.

    Entries without a source start at zero.
    """
    terms = gradient.terms if policy != "reset" else ()
    if policy == "carry_old":
        # A head that was tied is a copy of the embedding, which goes on as the original.
        terms = _originals(tuple(t for t in terms if t.source == gradient.target.key))

    terms = tuple(term.to_power(power) for term in terms)
    return replace(gradient, terms=terms, fresh=ZERO)


def _originals(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """The same without copies, within a term and between terms."""
    kept: list[Term] = []
    for term in terms:
        axes = [axis.first_only() for axis in term.axes]
        for earlier in kept:
            differing = [
                i
                for i, (a, b) in enumerate(zip(axes, earlier.axes, strict=True))
                if a.drawn != b.drawn
            ]
            if len(differing) > 1:
                continue
            # All other axes draw on the same entries, so along this one each is drawn once.
            place = differing[0] if differing else 0
            axes[place] = axes[place].without(earlier.axes[place].drawn)
        kept.append(replace(term, axes=tuple(axes)))
    return tuple(kept)
