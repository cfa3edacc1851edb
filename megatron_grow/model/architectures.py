"""The architectures that a run file can name, and the tensors of a model of any of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import DataSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.registry import Registry, configured
from megatron_grow.model.architecture import Architecture
from megatron_grow.model.huggingface import Family
from megatron_grow.state.tensors import LogicalTensor

ARCHITECTURES: Registry[Architecture] = Registry(
    "an architecture",
    "architecture",
    Architecture,
    {
        "gpt": "megatron_grow.model.gpt.architecture:GPT",
        "bert": "megatron_grow.model.bert.architecture:BERT",
    },
)


def architecture_of(model: ModelConfig) -> Architecture:
    """What builds ``model``, and knows its tensors; with the model's options.

    Raises:
        UserError: ``model.architecture`` names none, or it has no such options.
    """
    kind = ARCHITECTURES.find(model.architecture, "model.architecture")
    for option in kind.cannot.keys() & model.options.keys():
        why = kind.cannot[option]
        raise UserError(f"model.options.{option} is not an option of {model.architecture}: {why}")
    return configured(kind, model.architecture, model.options, "model.options")


def explicit(model: ModelConfig) -> dict[str, Any]:
    """Every field of ``model`` and every option, also those that are as by default."""
    return {**asdict(model), "options": asdict(architecture_of(model))}


def differences(model: ModelConfig, other: ModelConfig) -> dict[str, Any]:
    """Fields that make ``model`` of ``other``, as a run file has them."""
    said, options = explicit(model), asdict(architecture_of(other))
    found = {name: value for name, value in said.items() if value != getattr(other, name)}
    if said["options"] == options:
        found.pop("options", None)
    if "num_attention_heads" in found:  # else groups would follow the heads
        found["num_query_groups"] = model.num_query_groups
    return found


def data_options_of(model: ModelConfig, data: DataSection) -> Any:
    """What ``data.options`` says, as the dataclass that the architecture of ``model`` names.

    Raises:
        UserError: one that it has not, or a value that it refuses.
    """
    kind = ARCHITECTURES.find(model.architecture, "model.architecture").data_options
    return configured(kind, model.architecture, data.options, "data.options")


def all_families() -> dict[str, Family]:
    """By ``model_type``, the families of Hugging Face that an architecture of the table has."""
    found: dict[str, Family] = {}
    for name in ARCHITECTURES.builtin:
        found |= ARCHITECTURES.find(name, "model.architecture")().families()
    return found


def logical_tensors(
    model: ModelConfig, target_depth: int | None = None
) -> dict[str, LogicalTensor]:
    """All tensors of ``model``, by key; as :meth:`.architecture.Architecture.tensors`.

    Layers that share their parameters are one entry: an architecture need not know of them.

    Raises:
        UserError: layers that would be one differ.
    """
    tensors = architecture_of(model).tensors(model, target_depth)
    if (sharing := model.sharing) is None:
        return tensors
    try:
        return {key: tensor.shared(sharing) for key, tensor in tensors.items()}
    except ValueError as error:
        raise UserError(
            f"model.layer_sharing={model.layer_sharing}: layers of model.architecture="
            f"{model.architecture} that share their parameters must be alike; {error}"
        ) from None
