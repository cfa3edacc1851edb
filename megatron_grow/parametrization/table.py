"""The parametrizations that a run file can name, and that of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection, ParametrizationSection
from megatron_grow.config.stages import changed_model
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.registry import Registry, configured
from megatron_grow.model.architectures import differences
from megatron_grow.optim.multipliers import MultipliersOf, Tensors, multipliers_of
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.parametrization.base import Parametrization

PARAMETRIZATIONS: Registry[Parametrization] = Registry(
    "a parametrization",
    "name",
    Parametrization,
    {
        "standard": "megatron_grow.parametrization.base:Standard",
        "mup": "megatron_grow.parametrization.mup:MuP",
        "completep": "megatron_grow.parametrization.completep:CompleteP",
        "spectral": "megatron_grow.parametrization.spectral:Spectral",
    },
)


def parametrization_of(section: ParametrizationSection, target: ModelConfig) -> Parametrization:
    """What a run file asks for.

    Args:
        section: of the run file.
        target: the shape that the run ends with, which the section may correct. Its multipliers are
            not the base model's.

    Raises:
        UserError: ``name`` names none, an option or a field of the base is unknown or wrong.
    """
    kind = PARAMETRIZATIONS.find(section.name, "parametrization.name")
    target = changed_model(target, section.target, "parametrization.target")
    plain: dict[str, Any] = dict.fromkeys(target.plain_multipliers)
    base = changed_model(replace(target, **plain), section.base, "parametrization.base")
    shared = {field.name for field in fields(section)} & {field.name for field in fields(kind)}
    given = {name: getattr(section, name) for name in shared - {"base", "target"}}
    return configured(
        kind,
        section.name,
        section.options,
        "parametrization.options",
        **given,
        base=base,
        target=target,
    )


def parametrized(config: RunConfig) -> RunConfig:
    """The same run; its model has the multipliers that it leaves to the parametrization.

    All stages have those of the target. A run that has them already stays as it is.

    Raises:
        UserError: a parametrization that cannot be, or that has nothing to do.
    """
    found = run_parametrization(config)
    if found.needs_base and not config.parametrization.base:
        raise UserError(
            "parametrization.base names nothing in which the base model differs from the "
            "target, so nothing would scale; for example base: {hidden_size: 256}"
        )
    found.check()
    return replace(config, model=found.completed(config.model, found.target))


def by_itself(config: RunConfig) -> RunConfig:
    """The same run as one that ends with its model, and knows of no larger one.

    The base is the same model. Of the factors in the model's function those are left to the rule
    again that are what it gave the other target.
    """
    section, found = config.parametrization, run_parametrization(config)
    given = found.factors(found.target).items()
    theirs: dict[str, Any] = {
        name: None for name, value in given if getattr(config.model, name) == value
    }
    model = replace(config.model, **theirs)
    plain: dict[str, Any] = dict.fromkeys(model.plain_multipliers)
    base = {name: getattr(found.base, name) for name in section.base}
    base |= differences(found.base, replace(model, **plain))
    return replace(config, model=model, parametrization=replace(section, base=base, target={}))


def run_parametrization(config: RunConfig) -> Parametrization:
    """That of a run."""
    return parametrization_of(config.parametrization, config.model)


def multipliers_of_run(config: RunConfig, tensors: Tensors) -> MultipliersOf:
    """Those of a run's parametrization, times those that its file gives by hand.

    Args:
        config: the run.
        tensors: of a stage.
    """
    return joint_multipliers(run_parametrization(config), config.optimizer, tensors)


def joint_multipliers(
    parametrization: Parametrization, section: OptimizerSection, tensors: Tensors
) -> MultipliersOf:
    """As :func:`multipliers_of_run`."""
    own, optimizer = multipliers_of(section, tensors), optimizer_of(section)
    return lambda each: own(each) * parametrization.multipliers(each, optimizer.rule(each))


def recorded_parametrization(config: Mapping[str, Any], stored: ModelConfig) -> Parametrization:
    """That of a checkpoint's record of its run; ``standard``, where it says none.

    Args:
        config: the run, as the record has it.
        stored: the shape of the stored model, for a record that knows of no run.

    Raises:
        UserError: it is named by an import path that cannot be imported here.
    """
    known = {field.name for field in fields(ParametrizationSection)}
    said = config.get("parametrization", {}).items()
    section = ParametrizationSection(**{name: value for name, value in said if name in known})
    target = ModelConfig(**config["model"]) if "model" in config else stored
    return parametrization_of(section, target)
