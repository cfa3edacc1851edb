"""What a step trains on, and what it reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_grow.model.architecture import Architecture, Loss
from megatron_grow.parallel import cpu

Batch = Mapping[str, torch.Tensor]


class Objective:
    """Losses and metrics of micro-batches: totals of a rank, then means over all ranks.

    Totals are (names, 2): of each loss and metric a sum and a count, which add up over
    micro-batches and steps. The mean is their quotient. Of micro-batches that are alike
    (:attr:`.Architecture.has_counts`) the sum is a mean, and counts one.
    """

    def __init__(self, architecture: Architecture, micro_batches: int) -> None:
        """Under the process groups of a stage, each of whose ranks has as many micro-batches."""
        self._architecture, self._micro_batches = architecture, micro_batches
        self.losses = architecture.losses
        self.names = (*self.losses, *architecture.metrics)

    def zeros(self) -> torch.Tensor:
        """The totals of nothing."""
        return torch.zeros(len(self.names), 2, device=cpu.device())

    def weights(self, batches: Sequence[Batch]) -> torch.Tensor:
        """What to multiply sums of the losses by, for gradients of means over the global batch.

        megatron-core divides the loss of a micro-batch by their number, and gradients by that of
        the data-parallel ranks, which take part here, each with its micro-batches of one step.
        """
        counts = [self._architecture.counts(batch) for batch in batches]
        each = [torch.stack([count[name] for name in self.losses]) for count in counts]
        total = torch.stack(each).sum(0).to(cpu.device(), torch.float32)
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        parts = self._micro_batches * parallel_state.get_data_parallel_world_size()
        return torch.where(total > 0, parts / total, 0.0)

    def forward_step(
        self,
        weights: torch.Tensor | None,
        batches: Iterator[Batch] | None,
        chunk: torch.nn.Module,
    ) -> tuple[Any, Callable[[Any], tuple]]:
        """megatron-core's forward step: the output, and what turns it into a loss."""
        batch = None
        if batches is not None:
            batch = {
                name: x.to(cpu.device(), non_blocking=True) for name, x in next(batches).items()
            }
        output, loss = self._architecture.forward_step(chunk, batch)
        return output, partial(self.reported, loss, weights)

    def reported(
        self, loss: Loss, weights: torch.Tensor | None, output: Any
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What a micro-batch is trained on, a scalar, and what it adds to the totals."""
        found = loss(output)
        pairs = torch.stack([found[name] for name in self.names])
        if not self._architecture.has_counts:
            means = pairs[:, 0] / pairs[:, 1]
            pairs = torch.stack([means, torch.ones_like(means)], dim=1)
        trained = pairs[: len(self.losses), 0]
        value = (trained if weights is None else trained * weights).sum()
        return value, {"totals": pairs.detach()}

    def total(self, results: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
        """The totals of this rank's micro-batches; none are on ranks without the head."""
        totals = [result["totals"] for result in results]
        return torch.stack(totals, dim=-1).sum(-1) if totals else self.zeros()

    def means(self, totals: torch.Tensor) -> dict[str, float]:
        """Over all ranks: ``loss``, which is trained on, then its parts, if any, and the metrics.

        The same on every rank; every rank takes part. What nothing was counted of is 0.
        """
        # Tensor-parallel ranks of the last pipeline stage have the same totals, context-parallel
        # ones the sums of their tokens and the counts of all.
        whole = totals.detach().to("cpu", torch.float64)
        dist.all_reduce(whole)
        whole[:, 1] /= parallel_state.get_context_parallel_world_size()
        means = {
            name: total / count if count else 0.0
            for name, (total, count) in zip(self.names, whole.tolist(), strict=True)
        }
        return {"loss": sum(means[name] for name in self.losses)} | means

    def unknown(self) -> dict[str, float]:
        """What :meth:`means` gives, with no number known."""
        return dict.fromkeys(("loss", *self.names), math.nan)
