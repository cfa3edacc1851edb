"""A run whose numbers are no longer finite: noticed before the update, on all ranks at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from megatron_grow.config.errors import AgreedError
from megatron_grow.config.sections import TrainSection
from megatron_grow.live.pieces import placement
from megatron_grow.live.stage import LiveStage
from megatron_grow.parallel.agreement import gather
from megatron_grow.state.finite import is_finite
from megatron_grow.state.kinds import describe

_RANKS_NAMED = 8
"""In one message, at most."""


class DivergedError(AgreedError):
    """The run cannot go on: its numbers are not finite. All ranks raise it, with one message."""


class Finding(NamedTuple):
    """Something that is not finite."""

    what: str
    """With the ranks where it was seen."""
    ends: bool
    """Whether the run cannot go on."""
    advice: str = ""
    """What else would help besides a lower learning rate."""


class FiniteGuard:
    """Counts the steps whose update is refused, against the limit of ``train.non_finite``."""

    def __init__(self, train: TrainSection, skipped: int) -> None:
        """Take the policy, and the steps that went without an update before this start."""
        self._allowed = train.max_skipped_iters if train.non_finite == "skip" else 0
        self.skipped = skipped
        """Steps of the run without an update."""

    @staticmethod
    def accepts(losses: torch.Tensor, grad_norm: float) -> bool:
        """Whether this rank sees finite numbers; ranks may differ."""
        return math.isfinite(grad_norm) and math.isfinite(losses)

    def refuse(self, live: LiveStage, losses: torch.Tensor) -> Finding:
        """Count a step without an update; every rank takes part.

        Args:
            live: the stage, with the gradients that are refused.
            losses: this rank's.

        Returns:
            What is not finite. It ends the run where the step is one too many, or where the state
            is not finite either, which no skipped step mends.
        """
        state = find_in_state(live)
        if state is not None:
            return Finding(state, ends=True)
        found = _told([("the loss", losses)]) or _told(_gradients(live))
        found = found or "the gradient norm is not finite"
        self.skipped += 1
        if not self._allowed:
            advice = ", or pass over such steps with train.non_finite: skip"
            return Finding(found, ends=True, advice=advice)
        count = f"step {self.skipped} without an update, train.max_skipped_iters={self._allowed}"
        return Finding(f"{found} ({count})", ends=self.skipped > self._allowed)


def find_in_state(live: LiveStage) -> str | None:
    """The first tensor of the state that is not finite, and where; every rank takes part."""
    return _told((describe(piece.key, piece.kind), piece.data) for piece in live.pieces())


def _gradients(live: LiveStage) -> Iterator[tuple[str, torch.Tensor]]:
    for chunk in live.chunks:
        for param, (key, _, _) in placement(chunk.module, live.tensors):
            yield f"the gradient of {key}", param.main_grad  # type: ignore[attr-defined]


def _told(values: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The first name whose values are not finite, on the first rank where any are not."""
    first = next((name for name, data in values if not is_finite(data)), None)
    found = {rank: name for rank, name in enumerate(gather(first)) if name is not None}
    if not found:
        return None
    ranks = list(map(str, found))
    named = ", ".join(ranks[:_RANKS_NAMED])
    if len(ranks) > _RANKS_NAMED:
        named += f" and {len(ranks) - _RANKS_NAMED} more"
    return f"{next(iter(found.values()))} is not finite on rank{'s' * (len(ranks) > 1)} {named}"
