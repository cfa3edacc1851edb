"""A plan as numbers, for other programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from megatron_grow.cost.parameters import count_parameters
from megatron_grow.cost.step_time import model_flops
from megatron_grow.planning.advice import advice
from megatron_grow.planning.plan import PARTS, RunPlan, StagePlan


def summary(plan: RunPlan) -> dict[str, Any]:
    """Bytes, seconds and FLOPs; JSON as it is."""
    hours = {
        "run": plan.gpu_hours(plan.seconds),
        "fixed_size": plan.gpu_hours(plan.fixed_size_seconds),
    }
    return {
        "run": plan.config.run.name,
        "gpu": plan.gpu,
        "num_gpus": plan.world_size,
        "tokens": plan.tokens,
        "stages": [_stage(each) for each in plan.stages],
        "growths": [asdict(growth) for growth in plan.growths],
        "flops": {
            part: {"run": plan.flops(part), "fixed_size": plan.fixed_size_flops(part)}
            for part in PARTS
        },
        "seconds": {"run": plan.seconds, "fixed_size": plan.fixed_size_seconds},
        "gpu_hours": hours,
        "money": {name: plan.price * each for name, each in hours.items()} if plan.price else None,
        "run_file": advice(plan),
    }


def _stage(planned: StagePlan) -> dict[str, Any]:
    stage, chosen = planned.stage, planned.found.chosen
    parallel = chosen.step.placement.parallel
    return {
        "first_step": stage.first_step,
        "last_step": stage.last_step,
        "num_layers": stage.model.num_layers,
        "parameters": count_parameters(stage.model),
        "model_flops_per_step": model_flops(chosen.step),
        "layout": chosen.describe(),
        "parallel": asdict(parallel),
        "micro_batch_size": chosen.step.batch.micro_batch_size,
        "memory": {
            **asdict(chosen.peak.states),
            "activations": chosen.peak.activations,
            "working": chosen.peak.working,
            "total": chosen.peak.total,
        },
        "step_seconds": {**asdict(chosen.time), "total": chosen.time.total},
        "tokens_per_second": chosen.tokens_per_second,
        "mfu": chosen.utilisation,
        "efficiency": asdict(planned.efficiency),
        "against": planned.found.against,
        "seconds": planned.seconds,
    }
