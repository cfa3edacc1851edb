"""A method with a memory, for tests; a run file names it by import path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_grow.methods.base import Context, TrainingMethod


@dataclass
class SkipSpikes(TrainingMethod):
    """Make no update where the loss exceeds its moving average."""

    share: float = 0.5

    def __post_init__(self) -> None:
        self.average: float | None = None
        self.skipped: list[int] = []

    def before_update(self, ctx: Context, seen: bool) -> None:
        loss = ctx.mean_loss()
        if self.average is not None and loss > self.average:
            ctx.skip_update()
            self.skipped.append(ctx.step)
            ctx.report("spike", f"loss {loss:.3f} is a spike", loss=loss, average=self.average)
        before = loss if self.average is None else self.average
        self.average = self.share * before + (1 - self.share) * loss

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average, self.skipped = state["average"], state["skipped"]
