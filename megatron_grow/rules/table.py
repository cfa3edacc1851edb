"""The rules that a run file can name."""

from __future__ import annotations

from megatron_grow.inputs.registry import Registry
from megatron_grow.rules.base import Rule

RULES: Registry[Rule] = Registry(
    "a rule",
    "rule",
    Rule,
    {
        "loss_below": "megatron_grow.rules.loss_below:LossBelow",
        "loss_slope": "megatron_grow.rules.loss_slope:LossSlope",
    },
)
