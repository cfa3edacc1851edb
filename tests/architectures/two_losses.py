"""A GPT that trains on several losses, of which micro-batches hold unlike amounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron_grow.model.architecture import Loss
from megatron_grow.model.gpt.architecture import GPT


def parts(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which tokens each loss is over, (batch, sequence): in half of the sequences none is marked,
    and no label is negative."""
    marked = (labels % 15 == 0) & (labels[:, :1] % 2 == 0)
    return {"marked_loss": marked, "odd_loss": labels % 2 == 1, "no_loss": labels < 0}


@dataclass(frozen=True)
class TwoLosses(GPT):
    """And a metric: how often a marked token's loss is below 5."""

    @property
    def losses(self) -> tuple[str, ...]:
        """Two, and a third of which there is nothing."""
        return ("marked_loss", "odd_loss", "no_loss")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of marked tokens."""
        return ("marked_below_5",)

    def counts(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tokens of each loss."""
        return {name: part.sum() for name, part in parts(batch["labels"]).items()}

    def forward_step(
        self, chunk: torch.nn.Module, batch: Mapping[str, torch.Tensor] | None
    ) -> tuple[Any, Loss]:
        """A GPT's output, which is the loss of each token."""
        output, _ = super().forward_step(chunk, batch)
        return output, partial(_sums, batch)


def _sums(batch: Mapping[str, torch.Tensor], losses: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of this rank's tokens, and counts of all."""
    here = get_batch_on_this_cp_rank(parts(batch["labels"]))
    marked = here["marked_loss"]
    sums = {name: (losses * part).sum() for name, part in here.items()}
    sums["marked_below_5"] = ((losses < 5) & marked).float().sum()
    counts = {name: part.sum() for name, part in {**here, "marked_below_5": marked}.items()}
    for count in counts.values():
        dist.all_reduce(count, group=parallel_state.get_context_parallel_group())
    return {name: torch.stack([sums[name], counts[name]]) for name in sums}
