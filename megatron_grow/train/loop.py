"""The training loop: the steps of one stage, and what acts on them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from megatron_grow.inputs.errors import AgreedError
from megatron_grow.live.passes import Batches
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.optim.schedule import LearningRateSchedule
from megatron_grow.parallel.agreement import any_rank
from megatron_grow.parallel.patience import during
from megatron_grow.train.batches import Waiting


class Loop:
    """Trains a stage that is filled."""

    def __init__(self, ctx: Context, others: Sequence[TrainingMethod] = ()) -> None:
        """Start the methods of the stage, then ``others``; in each hook they act in this order."""
        self.ctx = ctx
        run = ctx.run
        self._schedule = LearningRateSchedule(run.schedule, run.optimizer, run.train.train_iters)
        self._acting = (*ctx.methods.values(), *others)
        for method in self._acting:
            method.on_stage_start(ctx)

    def steps(self, batches: Batches | None) -> Iterator[Context]:
        """Train until the stage ends or the run stops; yields after each step.

        Args:
            batches: this rank's micro-batches from the next step on; None where it needs none.
        """
        while not (self.ctx.ends or self.ctx.stopping):
            with during(f"step {self.ctx.step + 1}"):
                self.step(batches)
            yield self.ctx

    def step(self, batches: Batches | None) -> None:
        """Train for one step."""
        ctx, live, acting = self.ctx, self.ctx.live, self._acting
        ctx.next_step()
        ctx.began = time.perf_counter()
        ctx.lr = self._schedule.lr(ctx.step, ctx.run.optimizer.lr, live.stage)
        self._schedule.apply(live.optimizer, ctx.step, live.stage)
        for method in acting:
            method.before_step(ctx)
        waiting = Waiting(batches) if batches is not None else None
        ctx.totals = live.forward_backward(ctx.step, waiting)
        ctx.waited = waiting.seconds if waiting is not None else 0.0
        for method in acting:
            method.before_sharing(ctx)
        live.share_gradients()
        for method in acting:
            method.after_backward(ctx)
        ctx.grad_norm = live.gradient_norm()
        seen = any_rank(*(method.sees(ctx) for method in acting)) if acting else []
        for method, found in zip(acting, seen, strict=True):
            method.before_update(ctx, found)
        self._agree()
        if not ctx.skips:
            live.update(ctx.grad_norm, self._after_update)
            ctx.updated = True
        for method in acting:
            method.after_step(ctx)
        self._agree()

    def end(self) -> None:
        """Leave the stage."""
        for method in self._acting:
            method.on_stage_end(self.ctx)

    def _agree(self) -> None:
        """Raise on all ranks where the methods have not asked for the same on all: some would wait
        for ever for the others, or train on with other weights."""
        ctx = self.ctx
        if not ctx.methods:
            return
        asked = {"skip_update": ctx.skips, "stop": ctx.stopping, "end_stage": bool(ctx.end_reason)}
        found = any_rank(*asked.values(), *(not each for each in asked.values()))
        for name, some, others in zip(asked, found, found[len(asked) :], strict=False):
            if some and others:
                raise AgreedError(
                    f"stages[{ctx.stage.index}].methods: in step {ctx.step} some ranks asked for "
                    f"{name} and others did not; what one rank sees, sees() tells all"
                )

    def _after_update(self) -> None:
        for method in self._acting:
            method.after_update(self.ctx)
