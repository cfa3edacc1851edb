"""A method of which the ranks ask different things, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_grow.methods.base import Context, TrainingMethod


@dataclass
class Stray(TrainingMethod):
    """Asks on rank 1 alone."""

    what: str = "skip_update"

    def before_update(self, ctx: Context, seen: bool) -> None:
        if self.what == "skip_update" and dist.get_rank() == 1:
            ctx.skip_update()

    def after_step(self, ctx: Context) -> None:
        if self.what == "stop" and dist.get_rank() == 1:
            ctx.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"average": torch.ones(2)}
