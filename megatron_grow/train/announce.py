"""What a run says of its growths and releases before it begins."""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist
from rich.filesize import decimal

from megatron_grow.checkpoint.formats import growth_note
from megatron_grow.config.stages import Stage
from megatron_grow.cost.memory import estimate_memory
from megatron_grow.growth.forecast import forecast
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.train.preflight import Prepared


def announcements(prepared: Prepared) -> Iterator[str]:
    """Lines on what the run goes on from, and for each growth and release that is still to come.

    Of a growth: what, when, between which layouts, how much.
    """
    if prepared.start is not None:
        yield from prepared.start.notes
    world_size = dist.get_world_size()
    start, stages = prepared.start, prepared.stages
    done = start.stage if start else 0
    for stage, plan, methods in zip(stages, prepared.plans, prepared.methods, strict=True):
        at_load = stage.index == 0 and start is not None and not start.resumes
        if stage.index <= done and not at_load:
            continue
        layout = stage.parallel.describe(world_size)
        if start is not None and at_load:
            when, grown_from = "while loading", start.source.record.model_config
        else:
            before = stages[stage.index - 1]
            when, grown_from = _end(before), before.model
            layout = f"{before.parallel.describe(world_size)} -> {layout}"
        masked = any(method.masks_new_units for method in methods.values())
        caveats = plan.caveats_masked if masked else plan.caveats
        sizes = forecast(plan)
        memory = estimate_memory(
            stage.model,
            stage.parallel,
            world_size,
            precision=prepared.config.train.precision,
            optimizer=optimizer_of(prepared.config.optimizer),
        )
        yield (
            f"stages[{stage.index}], {when}: {plan.summary} | {layout} | "
            f"{sizes.parameters:,} parameters, {sizes.fresh:,} of them new | "
            f"{decimal(sizes.carried_bytes)} of state carried | "
            f"about {decimal(memory.total)} on the fullest rank, without activations | "
            + (f"changes the function ({'; '.join(caveats)})" if caveats else "keeps the function")
            + f" | {growth_note(grown_from, stage.model)}"
        )
    step = start.step if start else 0
    for stage in stages:
        if stage.release is not None and step < stage.last_step:
            steps = stage.release.steps_after(stage.last_step)
            yield (
                f"stages[{stage.index}], {_end(stage)}: releases {stage.release.name} after "
                f"{steps} steps of its own"
            )


def _end(stage: Stage) -> str:
    """When a stage ends, as far as it is known."""
    when = f"after step {stage.last_step}"
    return f"{when}, or earlier by {stage.rule.name}" if stage.rule else when
