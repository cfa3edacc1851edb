"""The run: stages one after another, in the same processes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from megatron_grow.config.timing import ended
from megatron_grow.growth.filling import fresh
from megatron_grow.live.stage import LiveStage, filled
from megatron_grow.methods.base import Context
from megatron_grow.model.architectures import architecture_of
from megatron_grow.parallel.agreement import together
from megatron_grow.parallel.patience import during
from megatron_grow.train.batches import batches_of
from megatron_grow.train.console import Console
from megatron_grow.train.directory_guard import DirectoryGuard
from megatron_grow.train.ending import StageEnding
from megatron_grow.train.evaluation import Evaluation
from megatron_grow.train.finite import FiniteGuard
from megatron_grow.train.fused import FusedKernels
from megatron_grow.train.gpu import gpu_of
from megatron_grow.train.growing import grow
from megatron_grow.train.layer_rows import LayerRows
from megatron_grow.train.loop import Loop
from megatron_grow.train.metrics import MetricsLog
from megatron_grow.train.output import Output, progress
from megatron_grow.train.preflight import Prepared
from megatron_grow.train.releases import Branch, due
from megatron_grow.train.reports import Reports
from megatron_grow.train.rows import ReleaseRow
from megatron_grow.train.saves import Saves
from megatron_grow.train.saving import Saving
from megatron_grow.train.signals import StopRequest
from megatron_grow.train.training_rows import TrainingRows


class Ended(NamedTuple):
    """How far a run was trained."""

    done: bool
    """To its last step; else to the end of a stage, or until it was asked to stop."""
    branch: Branch | None = None
    """What is to be trained before it goes on."""


class Trainer:
    """Trains a prepared run from its start, or its checkpoint, to its end.

    What happens besides the steps has the form of training methods. It follows those of the stage,
    in this order: the rule that may end the stage, what is told of kernels, what methods report,
    the request to stop, the guard against another run in the directory, that against numbers that
    are not finite, rows of layers, training rows, evaluation, saving.
    """

    def __init__(
        self, prepared: Prepared, console: Console, metrics: MetricsLog | None, stop: StopRequest
    ) -> None:
        """Take a run that has passed its checks; ``metrics`` on rank 0 alone."""
        self.prepared, self.config, self.stages = prepared, prepared.config, prepared.stages
        train = self.config.train
        self.datasets = architecture_of(self.config.model).datasets(
            prepared.data, self.config, prepared.train_samples
        )
        skipped = prepared.resumed.skipped_iters if prepared.resumed else 0
        self.output = Output(console, metrics)
        self.stop = stop
        self.directory = DirectoryGuard(self.config.run.output_dir, prepared.holder)
        self.saves = Saves(console.checkpoint, asynchronous=self.config.checkpoint.async_save)
        self.guard = FiniteGuard(train, self.output, self.saves, skipped)
        self.evaluation = Evaluation(self.output, self.datasets.valid, stop)
        self.saving = Saving(prepared, self.output, self.guard, self.saves)

    def run(self) -> Ended:
        """Train to the end of the run, or of a stage that has something to release.

        Raises:
            DivergedError: what the run has computed is not finite; it has not been saved.
        """
        with self.saves:
            return self._run()

    def _run(self) -> Ended:
        loop = self._resume() if self.prepared.start else self._begin()
        while self._train(loop):
            if loop.ctx.stage is self.stages[-1]:
                return self._leave(loop, self._branch(loop.ctx, self.saving.save(loop.ctx)))
            # The loss is known already unless the run resumed right here.
            found = self.evaluation.report(loop.ctx)
            if self.stop.poll():  # a growth is not left half-way
                break
            if loop.ctx.stage.release and (
                branch := self._branch(loop.ctx, self.saving.save(loop.ctx))
            ):
                return self._leave(loop, branch)
            loop = self._grow(loop, found)
        self.saving.save(loop.ctx)
        return Ended(False)

    def _branch(self, ctx: Context, checkpoint: Path) -> Branch | None:
        """What leaves the run at ``checkpoint``, if that is due."""
        branch = due(self.config, self.stages, ctx.stage.index, ctx.step, checkpoint)
        if branch is not None:
            row: ReleaseRow = {
                "event": "release",
                **progress(ctx),
                "name": branch.name,
                "steps": branch.steps,
                "output_dir": branch.config.run.output_dir,
            }
            self.output.console.release(row)
            self.output.write(row)
        return branch

    def _leave(self, loop: Loop, branch: Branch | None) -> Ended:
        """Let go of the model at the end of a stage, so that another run has room."""
        loop.end()
        loop.ctx.live.release()
        return Ended(loop.ctx.stage.index == len(self.stages) - 1, branch)

    def _train(self, loop: Loop) -> bool:
        """Train to the end of the stage; False if asked to stop before."""
        ctx = loop.ctx
        first_token = ctx.stage.tokens_at(ctx.step)
        with batches_of(ctx.live, self.config, self.datasets.train, first_token) as batches:
            if self.stop.poll():
                return False
            for _ in loop.steps(batches):
                pass
        return not ctx.stopping

    # How a stage begins

    def _begin(self) -> Loop:
        live = fresh(self.stages[0], self.config, self.prepared.plans[0])
        return self._enter(live, 0)

    def _resume(self) -> Loop:
        start, console = self.prepared.start, self.output.console
        assert start is not None
        live = filled(
            self.stages[start.stage],
            self.config,
            start.plan.tensors,
            lambda pieces: together(lambda: start.load(pieces)),
            start.optimizer_step,
        )
        if start.resumes:
            loop = self._enter(live, start.step, start.methods)
            stored = start.source
            kept = [piece for piece in loop.ctx.kept() if piece.kind in stored.kinds(piece.key)]
            together(lambda: start.load(kept))
            console.message(f"resumed from {start.path} at step {start.step}")
            if self.evaluation.due(loop.ctx) and self.output.lacks_evaluation(loop.ctx):
                self.evaluation.report(loop.ctx)  # the run was stopped before it could
        else:
            loop = self._enter(live, start.step)
            console.message(
                f"loaded {start.path} ({start.plan.summary}); begins at step {start.step}"
            )
        return loop

    def _grow(self, loop: Loop, before: dict[str, float] | None) -> Loop:
        """Leave one stage for the next; ``before`` is what the last evaluation found."""
        self.guard.check_state(loop.ctx)
        loop.end()
        step, index = loop.ctx.step, loop.ctx.stage.index + 1
        self.stages = ended(self.stages, index - 1, step)
        with during(f"the growth to stage {index}", pause=True):
            live, growth = grow(
                loop.ctx.live,
                self.stages[index],
                self.config,
                self.prepared.plans[index],
                step,
            )
        self.saving.growths.append(growth.event)
        grown = self._enter(live, step)
        row, after = growth.row, self.evaluation.measure(grown.ctx)
        row["val_loss_before"] = before["loss"] if before else None
        row["val_loss_after"] = after["loss"] if after else None
        others = {
            f"val_{name}_{when}": mean
            for when, found in (("before", before), ("after", after))
            for name, mean in (found or {}).items()
            if name != "loss"
        }
        self.output.console.growth(row)
        self.output.write({**row, **others})
        return grown

    def _enter(self, live: LiveStage, step: int, states: dict[str, dict] | None = None) -> Loop:
        """The loop over a stage of which ``step`` steps of the run are done."""
        index = live.stage.index
        methods = dict(self.prepared.methods[index])
        if live.stage.rule:
            methods["until"] = StageEnding(
                self.config, live.stage, self.saving.stage_ends, self.output, self.evaluation
            )
        for place, state in (states or {}).items():
            if place in methods:
                methods[place].load_state_dict(state)
        ctx = Context(self.config, self.stages, live, self.prepared.plans[index], step, methods)
        parts = [
            FusedKernels(self.output.console),
            Reports(self.output),
            self.stop,
            self.directory,
            self.guard,
        ]
        if self.config.train.layers_interval:
            parts.append(LayerRows(self.output))
        parts += [TrainingRows(self.output, gpu_of(self.config)), self.evaluation, self.saving]
        return Loop(ctx, parts)
