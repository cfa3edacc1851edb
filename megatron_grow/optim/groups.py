"""Parameter groups, from logical tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_grow.config.sections import OptimizerSection
from megatron_grow.optim.base import Optimizer
from megatron_grow.optim.multipliers import Multipliers, MultipliersOf
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.state.tensors import LogicalTensor


@dataclass
class ParameterGroup:
    """Tensors that are updated alike."""

    overrides: dict[str, float]
    """What sets it apart, in megatron-core's words: its ``ParamGroupOverride``."""
    keys: list[str] = field(default_factory=list)
    """Of its tensors."""

    def fields(self, rule: Optimizer, section: OptimizerSection) -> dict[str, Any]:
        """What megatron-core's own group has beside its parameters."""
        group: dict[str, Any] = {
            "is_expert_parallel": False,
            "is_decoupled_lr": False,
            "default_config": not any("lr" in name for name in self.overrides),
            "wd_mult": 1.0,
            "lr_mult": 1.0,
            "max_lr": rule.peak,
            "min_lr": section.min_lr,
            **self.overrides,
        }
        group["lr"] = group["max_lr"]  # until the schedule's first step
        # What megatron-core's parameter scheduler would do; here a schedule sets only rates.
        group["weight_decay"] = section.weight_decay * group["wd_mult"]
        return group


def parameter_groups(
    section: OptimizerSection,
    tensors: Mapping[str, LogicalTensor],
    multipliers: MultipliersOf,
) -> list[tuple[Optimizer, list[ParameterGroup]]]:
    """The rules that ``tensors`` are under, the optimizer itself first, and the groups of each.

    Of a rule, they are the groups that megatron-core would make of the same overrides, in its
    order. They depend on the whole model alone: checkpoints need the same groups on every rank.
    """
    optimizer = optimizer_of(section)
    rules: list[Optimizer] = [optimizer]
    groups: list[list[ParameterGroup]] = [[]]
    for tensor in tensors.values():
        rule = optimizer.rule(tensor)
        if rule not in rules:
            rules.append(rule)
            groups.append([])
        of_rule = groups[rules.index(rule)]
        overrides = _overrides(tensor, multipliers(tensor), rule, section)
        group = next((group for group in of_rule if group.overrides == overrides), None)
        if group is None:
            of_rule.append(group := ParameterGroup(overrides))
        group.keys.append(tensor.key)
    for of_rule in groups:
        of_rule.sort(key=lambda group: sorted(group.overrides.items()))
    return [(rule, of_rule) for rule, of_rule in zip(rules, groups, strict=True) if of_rule]


def _overrides(
    tensor: LogicalTensor, multipliers: Multipliers, rule: Optimizer, section: OptimizerSection
) -> dict[str, float]:
    """Weight decay leaves out biases and norms, whatever multiplies it."""
    overrides = {}
    if multipliers.lr != 1.0:
        overrides["lr_mult"] = multipliers.lr
        overrides["max_lr"] = multipliers.lr * rule.peak
        overrides["min_lr"] = multipliers.lr * section.min_lr
    decay = multipliers.weight_decay if tensor.is_matrix else 0.0
    if decay != 1.0:
        overrides["wd_mult"] = decay
    if multipliers.eps != 1.0 and rule.epsilon is not None:
        overrides["eps"] = multipliers.eps * rule.epsilon
    return overrides
