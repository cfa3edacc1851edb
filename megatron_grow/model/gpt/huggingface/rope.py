"""Rotary positions: the fields of ``config.json``, in all their spellings, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError

FIELDS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
_DEFAULT_BASE = 10000.0
# Megatron-core's RotaryEmbedding knows no others.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def from_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``ModelConfig`` for the rotary positions that ``config.json`` describes.

    Raises:
        UserError: something that megatron-core does not compute.
    """
    rope, base = _parameters(values)
    if not 1 <= base < 1e15 or base != int(base):
        raise UserError(f"rope_theta={base} cannot be expressed here; whole numbers from 1 can")
    fields: dict[str, Any] = {"rotary_base": int(base)}
    kind = rope.pop("rope_type")
    if kind in ("linear", "llama3"):
        factor = rope.pop("factor", None)
        if not isinstance(factor, int | float) or not 1.0 <= factor < 1e9:
            raise UserError(f"rope_scaling: factor={factor!r} must be a number of at least 1")
        if kind == "linear":
            fields["rotary_seq_len_interpolation_factor"] = float(factor)
        else:
            fields |= {"use_rope_scaling": True, "rope_scaling_factor": float(factor)}
    elif kind != "default":
        raise UserError(
            f"rope_scaling: rope_type={kind!r} cannot be expressed here; default, linear and "
            "llama3 can"
        )
    if kind == "llama3":
        for name, value in _LLAMA3.items():
            if (found := rope.pop(name, None)) != value:
                raise UserError(
                    f"rope_scaling: {name}={found!r} cannot be expressed here; only {value} can"
                )
    if rope:
        name, found = next(iter(rope.items()))
        raise UserError(f"rope_scaling: {name}={found!r} is not known with rope_type={kind!r}")
    return fields


def to_config(model: ModelConfig) -> dict[str, Any]:
    """The fields of ``config.json``, in the older spelling, which all versions read."""
    scaling: dict[str, Any] | None = None
    if model.use_rope_scaling:
        scaling = {"rope_type": "llama3", "factor": model.rope_scaling_factor, **_LLAMA3}
    elif model.rotary_seq_len_interpolation_factor is not None:
        scaling = {"rope_type": "linear", "factor": model.rotary_seq_len_interpolation_factor}
    return {"rope_theta": float(model.rotary_base), "rope_scaling": scaling}


def _parameters(values: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """What is said of scaling, wherever it is said, and the base period."""
    merged: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if value is not None and merged.setdefault(name, value) != value:
            raise UserError(f"{name} is {merged[name]!r} in one place and {value!r} in another")

    for table in ("rope_parameters", "rope_scaling"):
        parameters = values.get(table) or {}
        if not isinstance(parameters, dict):
            raise UserError(f"{table}={parameters!r} is not an object")
        for name, value in parameters.items():
            add("rope_type" if name == "type" else name, value)
    for name in ("rope_theta", "partial_rotary_factor"):
        add(name, values.get(name))
    if (share := merged.pop("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"partial_rotary_factor={share!r} cannot be expressed here; only 1.0 can")
    merged.setdefault("rope_type", "default")
    base = merged.pop("rope_theta", _DEFAULT_BASE)
    if isinstance(base, bool) or not isinstance(base, int | float):
        raise UserError(f"rope_theta={base!r} must be a number")
    return merged, base
