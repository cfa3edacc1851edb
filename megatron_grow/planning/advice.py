"""What to write into a run file, so that it runs as planned."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import yaml

from megatron_grow.config.stages import StageSection
from megatron_grow.planning.plan import RunPlan


def advice(plan: RunPlan) -> str:
    """YAML: ``parallel`` and ``train`` of each stage, and what is recomputed if that changes."""
    config, train = plan.config, plan.train
    run, stages = asdict(config.parallel), []
    for planned, section in zip(plan.stages, config.stages or [StageSection()], strict=True):
        step = planned.found.chosen.step
        chosen, size = asdict(step.placement.parallel), step.batch.micro_batch_size
        batch = {name: each for name, each in section.train.items() if name != "micro_batch_size"}
        if size != config.train.micro_batch_size:
            batch["micro_batch_size"] = size
        parallel = {name: value for name, value in chosen.items() if value != run[name]}
        stages.append({"parallel": parallel, "train": batch})
    advised: dict[str, Any] = {"stages": stages}
    if train.recompute_granularity != config.train.recompute_granularity:
        recomputed = {"recompute_granularity": train.recompute_granularity}
        advised = {"train": recomputed, **advised}
    return yaml.safe_dump(advised, sort_keys=False, default_flow_style=None, width=90)
