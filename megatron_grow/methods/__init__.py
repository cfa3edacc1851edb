"""Training methods, by the names that a run file uses."""

from __future__ import annotations

from dataclasses import replace

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.growth.plan import Plan
from megatron_grow.inputs.registry import Registry
from megatron_grow.methods.base import TrainingMethod

METHODS: Registry[TrainingMethod] = Registry(
    "a training method",
    "name",
    TrainingMethod,
    {
        "end_sharing": "megatron_grow.methods.end_sharing:EndSharing",
        "fade_in": "megatron_grow.methods.fade_in:FadeIn",
        "frozen": "megatron_grow.methods.frozen:Frozen",
        "split_sharing": "megatron_grow.methods.split_sharing:SplitSharing",
        "warm_up_new": "megatron_grow.methods.warm_up_new:WarmUpNew",
    },
)


def aligned(stage: Stage) -> Stage:
    """``stage``, with its layers aligned if a method of it asks for that.

    Raises:
        UserError: an unknown name.
    """
    asks = any(
        METHODS.find(spec, f"stages[{stage.index}].{place}").aligns_layers
        for place, spec in stage.methods.items()
    )
    return replace(stage, aligned_layers=asks)


def methods_of(stage: Stage, run: RunConfig, plan: Plan) -> dict[str, TrainingMethod]:
    """The methods of a stage that begins by ``plan``, by their place in its section.

    Raises:
        UserError: an unknown name or option, or what cannot work with the stage.
    """
    found = {}
    for place, spec in stage.methods.items():
        where = f"stages[{stage.index}].{place}"
        found[place] = METHODS.make(spec, where)
        found[place].check(stage, run, plan, where)
    return found
