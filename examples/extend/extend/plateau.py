"""A rule: ``until: {rule: "extend.plateau:Plateau", patience: 5, at_most: 0.8}``."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_grow.inputs.ranges import Count
from megatron_grow.rules.base import Observation, Rule


@dataclass(frozen=True)
class Plateau(Rule):
    """End the stage when the loss has found no new minimum for a while."""

    patience: Count = 5
    """Observations."""

    def ends(self, history: Sequence[Observation]) -> str | None:
        """As :meth:`.Rule.ends`."""
        lowest = min(history, key=lambda seen: seen.loss)
        waited = len(history) - 1 - history.index(lowest)
        if waited < self.patience:
            return None
        return f"no loss below {lowest.loss:.4f} since step {lowest.step}"
