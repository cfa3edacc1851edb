"""What is written down of a growth that happens."""

from __future__ import annotations

from dataclasses import asdict

from megatron_grow.checkpoint.record import GrowthEvent
from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.growth.plan import Plan

ON_DISK = "on disk"
"""The layout of a state that no ranks hold."""


def event_of(
    plan: Plan,
    grow: GrowSection | None,
    source: ModelConfig,
    *,
    step: int,
    stage: int = 0,
    source_layout: str = ON_DISK,
    target_layout: str = ON_DISK,
) -> GrowthEvent:
    """The event of a growth.

    Args:
        plan: by which it happens.
        grow: the operators that were asked for.
        source: the shape before.
        step: after which.
        stage: number of the one that begins.
        source_layout: how ranks hold the state before.
        target_layout: and after.
    """
    return GrowthEvent(
        step=step,
        stage=stage,
        summary=plan.summary,
        source_layout=source_layout,
        target_layout=target_layout,
        grow=asdict(grow) if grow else None,
        seed=plan.seed,
        source_model=asdict(source),
    )
