"""The validation losses, at their intervals and on both sides of a growth."""

from __future__ import annotations

from torch.utils.data import Dataset

from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.parallel.patience import during, goes_on
from megatron_grow.train.batches import batches_of
from megatron_grow.train.output import Output, progress
from megatron_grow.train.rows import EvaluationRow
from megatron_grow.train.signals import StopRequest


class Evaluation(TrainingMethod):
    """Evaluates after every ``train.eval_interval`` steps, and where a stage ends."""

    def __init__(self, output: Output, dataset: Dataset | None, stop: StopRequest) -> None:
        """Take the validation data; None where the run has none."""
        self._output, self._dataset, self._stop = output, dataset, stop
        self._last: tuple[int | None, dict[str, float] | None] = (None, None)

    def after_step(self, ctx: Context) -> None:
        """Evaluate if it is due, unless the run stops."""
        if self.due(ctx) and not ctx.stopping:
            self.report(ctx)
            if self._stop.agreed:
                ctx.stop()

    def due(self, ctx: Context) -> bool:
        """Whether the step that has just been done is one to evaluate after."""
        grown = ctx.stage.index > 0 and ctx.step == ctx.stage.first_step
        return grown or ctx.ends or ctx.step % ctx.run.train.eval_interval == 0

    def report(self, ctx: Context) -> dict[str, float] | None:
        """Measure and report, once for each step; None where that was interrupted."""
        if self._last[0] == ctx.step:
            return self._last[1]
        found = self.measure(ctx)
        if found is not None:
            self._last = ctx.step, found
            others = {f"val_{name}": mean for name, mean in found.items() if name != "loss"}
            row: EvaluationRow = {**progress(ctx), "val_loss": found["loss"]}
            self._output.console.evaluation(row, others)
            self._output.write({**row, **others})
        return found

    def measure(self, ctx: Context) -> dict[str, float] | None:
        """Means of losses and metrics, always over the same tokens (:meth:`.Objective.means`).

        None where the run does not evaluate, or was asked to stop.
        """
        if not ctx.run.train.eval_iters or self._dataset is None:
            return None
        at = during(f"the evaluation after step {ctx.step}")
        with at, batches_of(ctx.live, ctx.run, self._dataset, 0) as batches:
            return ctx.live.evaluate(batches, ctx.stage.eval_iters, self._stop_before_batch)

    def _stop_before_batch(self) -> bool:
        stop = self._stop.poll()
        goes_on()
        return stop
