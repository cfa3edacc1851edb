"""Growth operators, by the names that a run file uses."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from megatron_grow.config.errors import UserError
from megatron_grow.operators.base import DepthOperator
from megatron_grow.operators.copying_inter import CopyingInter
from megatron_grow.operators.copying_last import CopyingLast
from megatron_grow.operators.copying_stack import CopyingStack
from megatron_grow.operators.copying_zero import CopyingZero
from megatron_grow.operators.random import Random
from megatron_grow.operators.zero import Zero

DEPTH: dict[str, type[DepthOperator]] = {
    operator.name: operator
    for operator in (Random, Zero, CopyingStack, CopyingInter, CopyingLast, CopyingZero)
}


def depth_operator(spec: str | dict[str, Any], where: str) -> DepthOperator:
    """The operator that ``NAME`` or ``{operator: NAME, ...options}`` asks for.

    Raises:
        UserError: an unknown name or option; the message begins with ``where``.
    """
    options = {"operator": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("operator", None)
    if name not in DEPTH:
        raise UserError(f"{where}={name!r} is not an operator; known are {', '.join(DEPTH)}")
    known = {field.name for field in fields(DEPTH[name])}
    for option in options:
        if option not in known:
            raise UserError(
                f"{where}.{option} is not an option of {name}; "
                f"known are {', '.join(sorted(known)) or 'none'}"
            )
    return DEPTH[name](**options)
