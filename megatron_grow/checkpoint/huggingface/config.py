"""``config.json`` to ``ModelConfig`` and back: nothing is approximated, nothing is passed over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from megatron_grow.checkpoint.huggingface.harmless import HARMLESS
from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import all_families, architecture_of, logical_tensors
from megatron_grow.model.huggingface import Family

# Follow from the model.
_DERIVED = {"architectures", "dtype", "model_type", "torch_dtype"}
_NEVER = {
    "quantization_config": "quantized weights are not read; store them in fp32, bf16 or fp16",
    "num_experts": "experts are not supported",
    "num_local_experts": "experts are not supported",
    "auto_map": "the model computes what its own code says",
}
_HINTS = get_type_hints(ModelConfig)


def family_of(values: Mapping[str, Any], path: Path) -> Family:
    """The family that ``config.json``, read from ``path``, names.

    Raises:
        UserError: not one of the families here.
    """
    name, families = values.get("model_type"), all_families()
    if not isinstance(name, str) or name not in families:
        raise UserError(f"{path}: model_type={name!r} is not one of {', '.join(families)}")
    return families[name]


def to_model(values: Mapping[str, Any], path: Path, stored: Collection[str] = ()) -> ModelConfig:
    """The model that ``config.json``, read from ``path``, describes.

    Args:
        values: what is in it.
        path: for messages.
        stored: the names of all tensors; some heads show in these alone.

    Raises:
        UserError: a field that is missing, malformed, or says what cannot be computed here.
    """
    family = family_of(values, path)
    try:
        said = {**family.defaults, **values}
        _refuse_unknown(values, family)
        said = family.settle(said)
        for name, value in family.only.items():
            if said.get(name, value) != value:
                raise UserError(
                    f"{name}={said[name]!r} cannot be expressed here; only {value!r} can"
                )
        fields = dict(family.model) | _mapped(said, family)
        activation = said[family.activation_field]
        if not isinstance(activation, str) or activation not in family.activations:
            raise UserError(
                f"{family.activation_field}={activation!r} cannot be expressed here; "
                f"{', '.join(family.activations)} can"
            )
        fields["activation"] = family.activations[activation]
        fields |= family.own_model(said, stored)
        model = ModelConfig(**fields)
        if reason := _obstacle(model, family):
            raise UserError(f"{reason} does not fit a model of type {family.model_type}")
        # Said in full: what is left out would change when the model grows.
        return replace(model, **_resolved(model))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def choose_family(model: ModelConfig, wished: str | None, original: Mapping[str, Any]) -> Family:
    """The family in which ``model`` can be written.

    Args:
        model: the shape.
        wished: a ``model_type``; absent: that of ``original``, else the first that fits.
        original: the ``config.json`` that the model came with; may be empty.

    Raises:
        UserError: none fits; names the field that stands against each.
    """
    families = architecture_of(model).families()
    if wished is not None and wished not in families:
        raise UserError(f"family={wished} is not one of {', '.join(families)}")
    obstacles = {name: _obstacle(model, family) for name, family in families.items()}
    if wished is not None:
        if obstacles[wished]:
            raise UserError(f"the model cannot be written as {wished}: {obstacles[wished]}")
        return families[wished]
    fitting = [name for name, reason in obstacles.items() if reason is None]
    if not fitting:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in obstacles.items())
        raise UserError(f"no Hugging Face family can express the model ({reasons})")
    came_as = original.get("model_type")
    return families[came_as if came_as in fitting else fitting[0]]


def export_note(before: ModelConfig, after: ModelConfig) -> str:
    """Whether a model that is grown from ``before`` into ``after`` can be exported, for people."""
    families = architecture_of(after).families()
    fitting = [name for name, family in families.items() if _obstacle(after, family) is None]
    if fitting:
        return f"can be exported to Hugging Face as {', '.join(fitting)}"
    lost = [
        f"{name} any more: {_obstacle(after, family)}"
        for name, family in families.items()
        if _obstacle(before, family) is None
    ]
    return f"cannot be exported to Hugging Face{' as ' + lost[0] if lost else ''}"


def to_config(
    model: ModelConfig, family: Family, dtype: torch.dtype, original: Mapping[str, Any]
) -> dict[str, Any]:
    """The ``config.json`` of ``model``; :func:`to_model` gives back the same function.

    Args:
        model: one that ``family`` can express.
        family: how it is written.
        dtype: of the weights, or the most precise among them.
        original: the ``config.json`` that the model came with, whose token ids and other fields
            without influence on the function stay; may be empty.
    """
    resolved = _resolved(model) | model.multipliers
    kept = HARMLESS | family.harmless
    values = {name: value for name, value in original.items() if name in kept}
    for name, field in family.fields.items():
        values[name] = resolved.get(field, getattr(model, field))
    values |= family.only
    values[family.activation_field] = _spelling(model, family, original)
    return (
        values
        | family.own_config(model, original)
        | {
            "model_type": family.model_type,
            "architectures": [family.class_of(model)],
            # Newer versions call it dtype and read this as well.
            "torch_dtype": str(dtype).removeprefix("torch."),
        }
    )


def _resolved(model: ModelConfig) -> dict[str, Any]:
    """Fields that may be absent, with what they then stand for."""
    return {
        "num_query_groups": model.query_groups,
        "kv_channels": model.head_dim,
        "ffn_hidden_size": model.ffn_size,
    }


def _spelling(model: ModelConfig, family: Family, original: Mapping[str, Any]) -> str:
    names = [name for name, ours in family.activations.items() if ours == model.activation]
    before = original.get(family.activation_field)
    return before if before in names else names[0]


def _refuse_unknown(values: Mapping[str, Any], family: Family) -> None:
    known = {*HARMLESS, *_DERIVED, *family.fields, *family.defaults, *family.only}
    known |= family.harmless | family.own_fields
    # What is switched off changes nothing.
    unknown = {name: value for name, value in values.items() if value and name not in known}
    for name in _NEVER:
        if name in unknown:
            raise UserError(f"{name} is set: {_NEVER[name]}")
    if unknown:
        told = ", ".join(f"{name}={repr(value)[:80]}" for name, value in unknown.items())
        raise UserError(
            f"not known here: {told}; take out what does not change what the model computes"
        )


def _mapped(said: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Fields of ``ModelConfig`` that have a field of their own in ``config.json``."""
    fields: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, field in family.fields.items():
        value, hint = said.get(name), _HINTS[field]
        if value is None:
            if name not in family.nullable:
                raise UserError(f"{name} is missing")
            continue
        _check(name, value, hint, least=0 if field == "num_layers" else 1)
        if fields.setdefault(field, value) != value:
            raise UserError(
                f"{name}={value} differs from {origin[field]}={fields[field]}, which cannot be "
                "expressed here"
            )
        origin.setdefault(field, name)
    return fields


def _check(name: str, value: Any, hint: Any, least: int) -> None:
    """Of the type that ``ModelConfig`` has, and in range."""
    if hint is bool:
        if not isinstance(value, bool):
            raise UserError(f"{name}={value!r} must be true or false")
    elif hint in (float, float | None):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise UserError(f"{name}={value!r} must be a number, and not negative")
    elif isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name}={value!r} must be a whole number of at least {least}")


def _obstacle(model: ModelConfig, family: Family) -> str | None:
    """What in ``model`` the family cannot express; None: nothing."""
    for field, value in family.model.items():
        if getattr(model, field) != value:
            return f"model.{field}={getattr(model, field)}"
    for field, value in model.factors.items():
        if field not in family.fields.values():
            return f"model.{field}={value}"
    if model.activation not in family.activations.values():
        return f"model.activation={model.activation}"
    if reason := family.obstacle(model):
        return reason
    held = {key for key, _ in family.rows.values()}
    lost = sorted(key for key in logical_tensors(model) if key not in held)
    return f"tensor {lost[0]}" if lost else None
