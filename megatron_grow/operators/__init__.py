"""Growth operators, by the keys and names that a run file uses."""

from __future__ import annotations

from typing import Any

from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.registry import Registry
from megatron_grow.operators.base import Operator, Sizes

_HERE = "megatron_grow.operators"
_DEPTH = {
    "random": f"{_HERE}.depth.random:Random",
    "zero": f"{_HERE}.depth.zero:Zero",
    "copying_stack": f"{_HERE}.depth.copying_stack:CopyingStack",
    "copying_inter": f"{_HERE}.depth.copying_inter:CopyingInter",
    "copying_last": f"{_HERE}.depth.copying_last:CopyingLast",
    "copying_zero": f"{_HERE}.depth.copying_zero:CopyingZero",
    "identity": f"{_HERE}.depth.identity:Identity",
    "llama_pro": f"{_HERE}.depth.llama_pro:LlamaPro",
    "explicit": f"{_HERE}.depth.explicit:Explicit",
    "mix": f"{_HERE}.depth.mix:Mix",
    "unshare": f"{_HERE}.depth.unshare:Unshare",
}
_UNITS = {
    "fpi": f"{_HERE}.units.fpi:Fpi",
    "aki": f"{_HERE}.units.aki:Aki",
    "hypercloning": f"{_HERE}.units.hypercloning:HyperCloning",
    "lemon": f"{_HERE}.units.lemon:Lemon",
    "zero": f"{_HERE}.units.zero:UnitZero",
    "random": f"{_HERE}.units.random:UnitRandom",
    "sparkling": f"{_HERE}.units.sparkling:Sparkling",
}
_VOCAB = {
    "random": f"{_HERE}.vocab.rows:VocabRandom",
    "mean": f"{_HERE}.vocab.rows:VocabMean",
    "mapping": f"{_HERE}.vocab.rows:VocabMapping",
}
_POSITIONS = {
    "copy": f"{_HERE}.positions.rows:PositionCopy",
    "random": f"{_HERE}.positions.rows:PositionRandom",
    "interpolate": f"{_HERE}.positions.rows:PositionInterpolate",
}

OPERATORS: dict[str, Registry[Operator]] = {
    key: Registry("an operator", "operator", Operator, rows)
    for key, rows in {
        "depth": _DEPTH,
        "width": {**_UNITS, "block_diagonal": f"{_HERE}.units.block_diagonal:BlockDiagonal"},
        "heads": {
            **_UNITS,
            "head_size": f"{_HERE}.units.head_size:HeadSize",
            "regroup": f"{_HERE}.units.regroup:Regroup",
        },
        "ffn": _UNITS,
        "vocab": _VOCAB,
        "positions": _POSITIONS,
    }.items()
}
"""By key of ``grow``."""


def operator(
    key: str,
    spec: str | dict[str, Any],
    where: str,
    sizes: Sizes | None = None,
    post_norm: bool = False,
) -> Operator:
    """The operator that ``NAME`` or ``{operator: NAME, ...options}`` asks for under ``key``.

    Args:
        key: of ``grow``.
        spec: as a run file has it.
        where: begins the message of an error.
        sizes: of the axes that this key grows.
        post_norm: whether layers of the target normalise the residual stream itself.

    Raises:
        UserError: an unknown name, one that does not grow what ``key`` stands for, or an option
            that is unknown or of another type; the message begins with ``where``.
    """
    name = spec if isinstance(spec, str) else spec.get("operator")
    keys = OPERATORS[key].find(spec, where).keys
    if key not in keys:
        raise UserError(f"{where}={name} is an operator of {' and '.join(keys)}, not of {key}")
    return OPERATORS[key].make(
        spec, where, key=key, name=name, sizes=sizes or {}, post_norm=post_norm, answers={}
    )
