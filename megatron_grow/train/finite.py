"""A run whose numbers are no longer finite, or whose loss is too large.

Noticed before the update, on all ranks at once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from megatron_grow.config.sections import TrainSection
from megatron_grow.inputs.errors import AgreedError, UserError
from megatron_grow.live.placement import placement
from megatron_grow.live.stage import LiveStage
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.parallel.agreement import gather
from megatron_grow.state.finite import first_not_finite, is_finite
from megatron_grow.state.kinds import describe
from megatron_grow.train.output import Output, progress
from megatron_grow.train.rows import NotFiniteRow
from megatron_grow.train.saves import Saves

_RANKS_NAMED = 8
"""In one message, at most."""


class DivergedError(AgreedError):
    """The run cannot go on: its numbers are not finite, or its loss is too large. All ranks raise
    it, with one message."""


class Finding(NamedTuple):
    """Something that is not finite."""

    what: str
    """With the ranks where it was seen."""
    ends: bool
    """Whether the run cannot go on."""
    advice: str = ""
    """What else would help besides a lower learning rate."""


class FiniteGuard(TrainingMethod):
    """Refuses updates by what is not finite, or of too large a loss, up to the limit of
    ``train.non_finite``."""

    def __init__(self, train: TrainSection, output: Output, saves: Saves, skipped: int) -> None:
        """Take the policy, and the steps that went without an update before this start."""
        self._allowed = train.max_skipped_iters if train.non_finite == "skip" else 0
        self._most, self._loss = train.max_loss, 0.0
        self._output, self._saves = output, saves
        self.skipped = skipped
        """Steps of the run without an update."""

    def after_backward(self, ctx: Context) -> None:
        """Have the losses come to the host; it will have waited for the norm when it looks."""
        assert ctx.totals is not None
        losses = ctx.totals[: len(ctx.live.objective.losses), 0]
        self._losses = losses.to("cpu", non_blocking=True)

    def sees(self, ctx: Context) -> bool:
        """Whether this rank sees a number that is not finite, where ranks may differ, or a loss
        that is too large, which all know."""
        if self._most is not None:
            self._loss = ctx.mean_loss()
            if self._loss > self._most:
                return True
        return not (math.isfinite(ctx.grad_norm) and is_finite(self._losses))

    def before_update(self, ctx: Context, seen: bool) -> None:
        """Skip the update.

        Raises:
            DivergedError: the run cannot go on.
        """
        if seen:
            self._report(ctx, self._refuse(ctx))
            ctx.skip_update()

    def check_state(self, ctx: Context) -> None:
        """Raise :class:`DivergedError` where the state is not finite; it is not worth saving."""
        found = _find_in_state(ctx.live)
        if found is not None:
            self._report(ctx, Finding(found, ends=True))

    def _refuse(self, ctx: Context) -> Finding:
        """Count a step without an update; every rank takes part.

        It ends the run where the step is one too many, or where the state is not finite either,
        which no skipped step mends.
        """
        state = _find_in_state(ctx.live)
        if state is not None:
            return Finding(state, ends=True)
        found = _told(_losses(ctx)) or _told(_gradients(ctx.live))
        if found is None and self._most is not None and self._loss > self._most:
            found = f"the loss is {self._loss:.4g}, above train.max_loss={self._most:g}"
        found = found or "the gradient norm is not finite"
        self.skipped += 1
        if not self._allowed:
            advice = ", or pass over such steps with train.non_finite: skip"
            return Finding(found, ends=True, advice=advice)
        count = f"step {self.skipped} without an update, train.max_skipped_iters={self._allowed}"
        return Finding(f"{found} ({count})", ends=self.skipped > self._allowed)

    def _report(self, ctx: Context, finding: Finding) -> None:
        """Report what is not finite; raise :class:`DivergedError` where that ends the run."""
        found, action = finding.what, "stop" if finding.ends else "skip"
        row: NotFiniteRow = {
            "event": "not_finite",
            **progress(ctx),
            "found": found,
            "action": action,
        }
        self._output.write(row)
        if not finding.ends:
            self._output.console.warning(f"step {ctx.step}: {found}; no update was made")
            return
        way_out = "no checkpoint has been saved: begin again"
        with contextlib.suppress(UserError):  # there is an older one, then
            self._saves.finish()
        if self._saves.last is not None:
            step, path = self._saves.last
            way_out = f"go on from step {step} ({path})"
        raise DivergedError(
            f"step {ctx.step}: {found}; the run stops and saves nothing; {way_out} with a lower "
            f"optimizer.lr{finding.advice}"
        )


def _find_in_state(live: LiveStage) -> str | None:
    """The first tensor of the state that is not finite, and where; every rank takes part."""
    return _told((describe(piece.key, piece.kind), piece.data) for piece in live.pieces())


def _losses(ctx: Context) -> list[tuple[str, torch.Tensor]]:
    """This rank's sums of each loss that is trained on."""
    assert ctx.totals is not None
    named = zip(ctx.live.objective.losses, ctx.totals[:, 0], strict=False)
    return [("the loss" if name == "loss" else name, total) for name, total in named]


def _gradients(live: LiveStage) -> Iterator[tuple[str, torch.Tensor]]:
    for chunk in live.chunks:
        for param, where in placement(chunk.module, live.tensors):
            yield f"the gradient of {where.key}", param.main_grad  # type: ignore[attr-defined]


def _told(values: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The first name whose values are not finite, on the first rank where any are not."""
    names = enumerate(gather(first_not_finite(values)))
    found = {rank: name for rank, name in names if name is not None}
    if not found:
        return None
    ranks = list(map(str, found))
    named = ", ".join(ranks[:_RANKS_NAMED])
    if len(ranks) > _RANKS_NAMED:
        named += f" and {len(ranks) - _RANKS_NAMED} more"
    return f"{next(iter(found.values()))} is not finite on rank{'s' * (len(ranks) > 1)} {named}"
