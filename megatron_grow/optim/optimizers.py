"""The optimizers that a run file can name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from megatron_grow.config.sections import OptimizerSection
from megatron_grow.inputs.registry import Registry, configured
from megatron_grow.optim.base import Optimizer

OPTIMIZERS: Registry[Optimizer] = Registry(
    "an optimizer",
    "optimizer",
    Optimizer,
    {
        "adam": "megatron_grow.optim.adam:Adam",
        "sgd": "megatron_grow.optim.sgd:SGD",
        "muon": "megatron_grow.optim.muon:MuonAdam",
        "muon_nsgd": "megatron_grow.optim.muon_nsgd:MuonNSGD",
    },
)


def optimizer_of(section: OptimizerSection) -> Optimizer:
    """The optimizer that a run file asks for.

    Raises:
        UserError: ``optimizer.optimizer`` names none, or an option is unknown or wrong.
    """
    kind = OPTIMIZERS.find(section.optimizer, "optimizer.optimizer")
    shared = {field.name for field in fields(section)} & {field.name for field in fields(kind)}
    given = {name: getattr(section, name) for name in shared}
    return configured(kind, section.optimizer, section.options, "optimizer.options", **given)


def recorded_section(config: Mapping[str, Any]) -> OptimizerSection:
    """What a checkpoint's record of its run says of the optimizer; defaults, where it does not."""
    known = {field.name for field in fields(OptimizerSection)}
    said = config.get("optimizer", {}).items()
    return OptimizerSection(**{name: value for name, value in said if name in known})


def recorded_optimizer(config: Mapping[str, Any]) -> Optimizer:
    """The optimizer of a checkpoint's record of its run.

    Raises:
        UserError: it is named by an import path that cannot be imported here.
    """
    return optimizer_of(recorded_section(config))
