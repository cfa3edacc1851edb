"""What a growth will do, told before the run begins."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_grow.growth.plan import Plan
from megatron_grow.state.boxes import full, volume
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.materialise import fresh_parts

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


def forecast(plan: Plan) -> Forecast:
    """The sizes of ``plan``, a growth; no tensor is made."""
    assert plan.optimizer is not None, "a growth knows whose state it carries"
    total = fresh = carried = 0
    for key, tensor in plan.tensors.items():
        size = volume(full(tensor.shape))
        total += size
        for kind in (MAIN_PARAM, *plan.optimizer.rule(tensor).states):
            parts = fresh_parts(plan.map(key, kind), full(tensor.shape))
            new = sum(volume(part) for part, _ in parts)
            carried += size - new
            fresh += new if kind == MAIN_PARAM else 0
    return Forecast(total, fresh, carried * _BYTES)
