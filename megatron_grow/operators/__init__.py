"""Growth operators, by the keys and names that a run file uses."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from megatron_grow.config.errors import UserError
from megatron_grow.config.typed import typed
from megatron_grow.operators.base import Operator
from megatron_grow.operators.depth.copying_inter import CopyingInter
from megatron_grow.operators.depth.copying_last import CopyingLast
from megatron_grow.operators.depth.copying_stack import CopyingStack
from megatron_grow.operators.depth.copying_zero import CopyingZero
from megatron_grow.operators.depth.explicit import Explicit
from megatron_grow.operators.depth.identity import Identity
from megatron_grow.operators.depth.llama_pro import LlamaPro
from megatron_grow.operators.depth.mix import Mix
from megatron_grow.operators.depth.random import Random
from megatron_grow.operators.depth.zero import Zero
from megatron_grow.operators.positions.rows import (
    PositionCopy,
    PositionInterpolate,
    PositionRandom,
)
from megatron_grow.operators.units.aki import Aki
from megatron_grow.operators.units.base import UnitOperator
from megatron_grow.operators.units.block_diagonal import BlockDiagonal
from megatron_grow.operators.units.fpi import Fpi
from megatron_grow.operators.units.head_size import HeadSize
from megatron_grow.operators.units.hypercloning import HyperCloning
from megatron_grow.operators.units.lemon import Lemon
from megatron_grow.operators.units.random import UnitRandom
from megatron_grow.operators.units.regroup import Regroup
from megatron_grow.operators.units.sparkling import Sparkling
from megatron_grow.operators.units.zero import UnitZero
from megatron_grow.operators.vocab.rows import VocabMapping, VocabMean, VocabRandom

_DEPTH = (
    Random,
    Zero,
    CopyingStack,
    CopyingInter,
    CopyingLast,
    CopyingZero,
    Identity,
    LlamaPro,
    Explicit,
    Mix,
)
_UNITS = (Fpi, Aki, HyperCloning, Lemon, UnitZero, UnitRandom, Sparkling)


OPERATORS: dict[str, dict[str, type[Operator]]] = {
    key: {operator.name: operator for operator in operators}
    for key, operators in {
        "depth": _DEPTH,
        "width": (*_UNITS, BlockDiagonal),
        "heads": (*_UNITS, HeadSize, Regroup),
        "ffn": _UNITS,
        "vocab": (VocabRandom, VocabMean, VocabMapping),
        "positions": (PositionCopy, PositionInterpolate, PositionRandom),
    }.items()
}
"""By key of ``grow``, then by name."""


def operator(key: str, spec: str | dict[str, Any], where: str) -> Operator:
    """The operator that ``NAME`` or ``{operator: NAME, ...options}`` asks for under ``key``.

    Raises:
        UserError: an unknown name, or an option that is unknown or of another type; the message
            begins with ``where``.
    """
    options = {"operator": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("operator", None)
    known = OPERATORS[key]
    if not isinstance(name, str) or name not in known:
        raise UserError(f"{where}={name!r} is not an operator; known are {', '.join(known)}")
    made = known[name]
    kind = {"kind": key} if issubclass(made, UnitOperator) else {}
    names = {field.name for field in fields(made)} - set(kind)
    for option in options:
        if option not in names:
            raise UserError(
                f"{where}.{option} is not an option of {name}; "
                f"known are {', '.join(sorted(names)) or 'none'}"
            )
    values = typed(made, {**options, **kind}, where)
    try:
        return made(**values)
    except UserError as error:
        raise UserError(f"{where}.{error}") from None
