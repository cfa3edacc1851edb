"""The algebra of growth: how a target tensor is made from source tensors.

A *tensor map* is a sum of separable terms, one map for each axis, plus a rule for entries that no
term covers. :mod:`.materialise` applies one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from megatron_grow.state.axis_map import FRESH, AxisMap, Noise
from megatron_grow.state.axis_maps import Identity
from megatron_grow.state.tensors import Init, LogicalTensor


@dataclass(frozen=True)
class Term:
    """One separable part of a tensor map."""

    source: str
    """Key of the source tensor."""
    axes: tuple[AxisMap, ...]
    scale: tuple[int, tuple[float, ...]] | None = None
    """An axis, and what each of its entries is multiplied by, once it is drawn; None: by 1."""

    def factors(self, axis: int, start: int, stop: int) -> torch.Tensor:
        """By what :attr:`scale` multiplies entries ``start:stop`` of an axis; fp64."""
        if self.scale is None or self.scale[0] != axis:
            return torch.ones(stop - start, dtype=torch.float64)
        return torch.tensor(self.scale[1][start:stop], dtype=torch.float64)

    def to_power(self, power: int) -> Term:
        """The same of a moment that carries a power of the gradient."""
        scale = self.scale and (self.scale[0], tuple(f**power for f in self.scale[1]))
        return replace(self, axes=tuple(axis.to_power(power) for axis in self.axes), scale=scale)

    @cached_property
    def noise(self) -> tuple[int, Noise] | None:
        """The axis along which noise is added to what this draws, and which."""
        found = ((i, axis.noise) for i, axis in enumerate(self.axes) if axis.noise)
        return next(found, None)


@dataclass(frozen=True)
class TensorMap:
    """How one target tensor is made."""

    target: LogicalTensor
    terms: tuple[Term, ...]
    fresh: Init
    """Rule for entries that no term covers, unless an axis along which they are new has its own; a
    rule that asks for zeros wins."""

    @cached_property
    def noisy(self) -> tuple[TensorMap, ...]:
        """Those of the terms that get noise, together where it is the same."""
        together: list[list[Term]] = []
        for term in self.terms:
            if term.noise is None:
                continue
            same = next((terms for terms in together if terms[0].noise == term.noise), None)
            if same is None:
                together.append([term])
            else:
                same.append(term)
        return tuple(replace(self, terms=tuple(terms)) for terms in together)

    def old(self, axis: int) -> torch.Tensor:
        """Which entries along an axis the source had: of copies of one entry, the first is it.

        Returns:
            (size of the axis), bool.
        """
        size, seen = self.target.shape[axis], {FRESH}
        had = torch.zeros(size, dtype=torch.bool)
        for term in self.terms:
            if term.source != self.target.key:  # it begins as another tensor, and is new
                continue
            for entry, source in enumerate(term.axes[axis].copied(size)):
                had[entry] |= source not in seen
                seen.add(source)
        return had


def identity(tensor: LogicalTensor) -> TensorMap:
    """The map that keeps ``tensor`` as it is."""
    return TensorMap(tensor, (Term(tensor.key, (Identity(),) * len(tensor.axes)),), tensor.init)


def all_fresh(tensor: LogicalTensor) -> TensorMap:
    """The map that draws on nothing: initial values."""
    return TensorMap(tensor, (), tensor.init)
