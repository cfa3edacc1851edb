"""What a growth will do, told before the run begins."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_grow.growth.plan import Plan
from megatron_grow.state.boxes import full, volume
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.maps import fresh_parts

_BYTES = 4  # all state moves in fp32


@dataclass(frozen=True)
class Forecast:
    """Sizes of one growth."""

    parameters: int
    """Of the target."""
    fresh: int
    """Of these, drawn from nothing."""
    carried_bytes: int
    """Main parameters and moments that come from the source, replicas not counted: what moves
    between ranks at most, for each copy of the model."""


def forecast(plan: Plan, moments: tuple[str, ...]) -> Forecast:
    """The sizes of ``plan``, for an optimizer with these ``moments``; no tensor is made."""
    total = sum(volume(full(tensor.shape)) for tensor in plan.tensors.values())
    fresh = {kind: _fresh(plan, kind) for kind in (MAIN_PARAM, *moments)}
    carried = sum(total - new for new in fresh.values())
    return Forecast(total, fresh[MAIN_PARAM], carried * _BYTES)


def _fresh(plan: Plan, kind: str) -> int:
    return sum(
        volume(part)
        for key, tensor in plan.tensors.items()
        for part, _ in fresh_parts(plan.map(key, kind), full(tensor.shape))
    )
