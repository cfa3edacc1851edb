"""The rules that a run file can name."""

from __future__ import annotations

from megatron_grow.inputs.registry import Registry
from megatron_grow.rules.base import Rule

RULES: Registry[Rule] = Registry(
    "a rule",
    "rule",
    Rule,
    {
        "calibrated": "megatron_grow.rules.calibrated:Calibrated",
        "g_stack": "megatron_grow.rules.g_stack:GStack",
        "head_start": "megatron_grow.rules.head_start:HeadStart",
        "loss_below": "megatron_grow.rules.loss_below:LossBelow",
        "loss_slope": "megatron_grow.rules.loss_slope:LossSlope",
    },
)
