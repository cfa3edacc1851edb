"""Multiples of rate, weight decay and epsilon for some of the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import reduce
from operator import mul

from megatron_grow.config.sections import OptimizerSection
from megatron_grow.config.stages import override
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.names import nearest
from megatron_grow.inputs.ranges import NotNegative, Positive, check_fields
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.optim.roles import ROLES, roles
from megatron_grow.state.tensors import LogicalTensor

Tensors = Mapping[str, LogicalTensor]
"""All of a model, by key."""


@dataclass(frozen=True)
class Multipliers:
    """Of one tensor."""

    lr: NotNegative = 1.0
    """Of its learning rate at every step, peak and minimum alike."""
    weight_decay: NotNegative = 1.0
    eps: Positive = 1.0

    def __mul__(self, other: Multipliers) -> Multipliers:
        """Both of them."""
        return Multipliers(
            self.lr * other.lr, self.weight_decay * other.weight_decay, self.eps * other.eps
        )


MultipliersOf = Callable[[LogicalTensor], Multipliers]
"""The multipliers of each tensor of a model: what parameter groups are made from."""


@dataclass(frozen=True)
class Entry(Multipliers):
    """One of ``optimizer.multipliers``: some tensors, and their multipliers."""

    tensors: str | list[str] = field(default_factory=list)
    """Roles, and patterns of keys with ``*``; one or several."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def patterns(self) -> list[str]:
        """``tensors``, as a list."""
        return [self.tensors] if isinstance(self.tensors, str) else self.tensors


def multipliers_of(section: OptimizerSection, tensors: Tensors) -> MultipliersOf:
    """Those of a run file: of several entries that a tensor is in, the product.

    Raises:
        UserError: an entry that cannot be.
    """
    entries = _entries(section)

    def of(tensor: LogicalTensor) -> Multipliers:
        found = (
            entry
            for entry in entries
            if any(_matches(pattern, tensor) for pattern in entry.patterns)
        )
        return reduce(mul, found, Multipliers())

    return of


def check_optimizer(section: OptimizerSection, models: Sequence[Tensors]) -> None:
    """Refuse an optimizer that is none, and multipliers without effect.

    Args:
        section: of the run file.
        models: the tensors of each stage.

    Raises:
        UserError: an unknown optimizer or option, an entry that cannot be, a pattern that matches
            no tensor of any stage, or an epsilon of tensors whose rule has none.
    """
    optimizer = optimizer_of(section)
    for number, entry in enumerate(_entries(section)):
        where = f"optimizer.multipliers[{number}]"
        for pattern in entry.patterns:
            matched = [
                tensor
                for tensors in models
                for tensor in tensors.values()
                if _matches(pattern, tensor)
            ]
            if not matched:
                keys = {key for tensors in models for key in tensors}
                raise UserError(
                    f"{where}.tensors={pattern} is no role and matches no tensor of any stage; "
                    f"{nearest(pattern, keys | set(ROLES))}"
                )
            if entry.eps != 1.0 and all(optimizer.rule(t).epsilon is None for t in matched):
                raise UserError(
                    f"{where}.eps={entry.eps} has no effect on {pattern}: under "
                    f"{section.optimizer} its update has no epsilon; leave it out"
                )


def _entries(section: OptimizerSection) -> list[Entry]:
    entries = []
    for number, values in enumerate(section.multipliers):
        where = f"optimizer.multipliers[{number}]"
        entries.append(override(Entry(), values, where))
        if not entries[-1].tensors:
            raise UserError(
                f"{where}.tensors is missing: roles ({', '.join(ROLES)}) or patterns of keys"
            )
    return entries


def _matches(pattern: str, tensor: LogicalTensor) -> bool:
    if pattern in ROLES:
        return pattern in roles(tensor)
    return fnmatchcase(tensor.key, pattern)
