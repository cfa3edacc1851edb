"""A whole run, planned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import Stage, resolve_stages
from megatron_grow.cost.flops import Definition, flops_at_step, flops_per_sample
from megatron_grow.cost.step_time import Machine
from megatron_grow.inputs.errors import UserError
from megatron_grow.planning.efficiency import Efficiency
from megatron_grow.planning.growths import GrowthForecast, forecast_growth
from megatron_grow.planning.search import Found, find

PARTS: tuple[Definition, ...] = ("total", "blocks")
_HOUR = 3600


@dataclass(frozen=True)
class StagePlan:
    """One stage, in the layout in which it is fastest."""

    stage: Stage
    found: Found
    efficiency: Efficiency

    @property
    def steps(self) -> int:
        """Of the stage, if it ends where it ends at the latest."""
        return self.stage.last_step - self.stage.first_step

    @property
    def seconds(self) -> float:
        """Of all its steps."""
        return self.steps * self.found.chosen.time.total


@dataclass(frozen=True)
class RunPlan:
    """All that is known of a run before it begins."""

    config: RunConfig
    gpu: str
    world_size: int
    train: TrainSection
    """Of the run, with what the plan recomputes."""
    stages: list[StagePlan]
    growths: list[GrowthForecast]
    seconds_otherwise: float | None
    """Of all steps, were it the other way about recomputation; None where that does not fit."""
    price: float | None
    """Of a GPU for an hour."""

    @property
    def tokens(self) -> int:
        """That the run reads."""
        last = self.stages[-1].stage
        return last.tokens_at(last.last_step)

    @property
    def seconds(self) -> float:
        """From the first step to the last, growths included."""
        training = sum(stage.seconds for stage in self.stages)
        return training + sum(growth.pause for growth in self.growths)

    @property
    def fixed_size_seconds(self) -> float:
        """Of the target on the same tokens, in the layout of the last stage."""
        last = self.stages[-1].found.chosen
        return self.tokens / last.tokens_per_second

    def flops(self, part: Definition) -> int:
        """Of the run, as :func:`.flops.flops_at_step` counts them."""
        stages = [each.stage for each in self.stages]
        return flops_at_step(stages, stages[-1].last_step, part, self.config.data)

    def fixed_size_flops(self, part: Definition) -> int:
        """Of the target on the same tokens."""
        last = self.stages[-1].stage
        length = last.batch.seq_length
        of_sample = flops_per_sample(last.model, part, length, self.config.data)
        return self.tokens * of_sample // length

    def gpu_hours(self, seconds: float) -> float:
        """Of all GPUs in that time."""
        return self.world_size * seconds / _HOUR


def plan_run(
    config: RunConfig,
    gpu: str,
    world_size: int,
    machine: Machine,
    efficiency_of: Callable[[ModelConfig], Efficiency],
    price: float | None = None,
) -> RunPlan:
    """Choose a layout for each stage, and what is recomputed in all of them.

    Args:
        config: the run, its vocabulary known.
        gpu: the name of what ``machine`` has.
        world_size: how many of them.
        machine: what the run would run on; its efficiency is replaced by that of each stage.
        efficiency_of: what a stage's model is taken to reach.
        price: of a GPU for an hour.

    Raises:
        UserError: a run that does not resolve, is not in bf16, or does not fit.
    """
    if config.train.precision != "bf16":
        raise UserError(
            f"train.precision={config.train.precision}: a plan knows the speed of GPUs in bf16 "
            "alone; add --train.precision bf16"
        )
    checkpoint = config.checkpoint
    stages = resolve_stages(
        config.stages,
        config.model,
        config.parallel,
        config.train,
        grows_at_load=bool(checkpoint.initial or checkpoint.load_directory),
    )
    plans = []
    for granularity in (None, "full"):
        train = replace(config.train, recompute_granularity=granularity)
        planned = _stages(config, stages, train, world_size, machine, efficiency_of)
        if planned is not None:
            plans.append((sum(each.seconds for each in planned), train, planned))
    if not plans:
        raise UserError(
            f"--num-gpus={world_size}: the model fits in no layout on so many {gpu}, not even with "
            "all layers recomputed; take more, or larger ones"
        )
    plans.sort(key=lambda plan: plan[0])
    _, train, chosen = plans[0]
    growths = [
        forecast_growth(after.stage.first_step, before.found.chosen, after.found.chosen)
        for before, after in pairwise(chosen)
    ]
    otherwise = plans[1][0] if len(plans) > 1 else None
    return RunPlan(config, gpu, world_size, train, chosen, growths, otherwise, price)


def _stages(
    config: RunConfig,
    stages: Sequence[Stage],
    train: TrainSection,
    world_size: int,
    machine: Machine,
    efficiency_of: Callable[[ModelConfig], Efficiency],
) -> list[StagePlan] | None:
    """None where one of them does not fit."""
    planned = []
    for stage in stages:
        efficiency = efficiency_of(stage.model)
        reached = replace(machine, efficiency=efficiency.share)
        found = find(stage, config, train, world_size, reached)
        if found is None:
            return None
        planned.append(StagePlan(stage, found, efficiency))
    return planned
