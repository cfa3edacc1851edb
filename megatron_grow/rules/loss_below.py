"""A stage that ends when its loss is low enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_grow.inputs.ranges import Positive
from megatron_grow.rules.base import Observation, Rule


@dataclass(frozen=True)
class LossBelow(Rule):
    """End the stage when the last observed loss is below ``loss``."""

    loss: Positive

    def ends(self, history: Sequence[Observation]) -> str | None:
        """As :meth:`.Rule.ends`."""
        last = history[-1].loss
        return f"loss {last:.6g} is below {self.loss:g}" if last < self.loss else None
