"""What may end a stage: when its rule is asked, and what is recorded of the answer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from megatron_grow.checkpoint.record import StageEnd
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.config.timing import next_end
from megatron_grow.cost.flops import flops_at_step
from megatron_grow.inputs.errors import AgreedError, UserError
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.model.architectures import architecture_of
from megatron_grow.parallel.agreement import gather, leads
from megatron_grow.rules.base import Observation, Rule
from megatron_grow.rules.table import RULES
from megatron_grow.train.evaluation import Evaluation
from megatron_grow.train.output import Output, progress
from megatron_grow.train.rows import StageEndRow


def rule_of(stage: Stage, run: RunConfig) -> Rule | None:
    """The rule that may end ``stage`` of ``run``, if it has one.

    Raises:
        UserError: an unknown name, options that it cannot have, or a loss that is not trained on.
    """
    if stage.rule is None or not stage.rule.spec:
        return None
    where, name = f"stages[{stage.index}].until", stage.rule.loss_name
    known = dict.fromkeys(("loss", *architecture_of(stage.model).losses))
    if name not in known:
        raise UserError(f"{where}.loss_name={name} must be one of {', '.join(known)}")
    return RULES.make(stage.rule.spec, where, run=run, stage=stage)


class StageEnding(TrainingMethod):
    """Ends a stage where its rule says so, to which it shows the losses, or a method has asked.

    It follows the methods of the stage.
    """

    def __init__(
        self,
        run: RunConfig,
        stage: Stage,
        ends: list[StageEnd],
        output: Output,
        evaluation: Evaluation,
    ) -> None:
        """Add the end of ``stage``, as soon as it is known, to ``ends``."""
        assert stage.rule is not None
        self._when, self._rule = stage.rule, rule_of(stage, run)
        self._ends, self._output, self._evaluation = ends, output, evaluation
        self._history: list[Observation] = []
        # Of the steps since the last observation; summed step by step, so that a stop between two
        # observations changes no bit.
        self._loss, self._updates = 0.0, 0

    def on_stage_start(self, ctx: Context) -> None:
        """Ask the rule where the run was stopped before it could be asked."""
        self._decide(ctx)

    def after_step(self, ctx: Context) -> None:
        """Ask the rule if it is due; decide where the stage ends, once."""
        if self._rule is not None and ctx.updated:
            self._loss += ctx.means()[self._when.loss_name]
            self._updates += 1
        if ctx.last_step is None:
            self._decide(ctx)

    def _decide(self, ctx: Context) -> None:
        stage, reason = ctx.stage, self._ask(ctx) or ctx.end_reason
        if reason is None and ctx.step == stage.last_step and not ctx.stopping:
            reason = "at_most"
        if reason is None:
            return
        last_step = ctx.last_step = next_end(ctx.stages, stage.index, ctx.step)
        self._ends.append(StageEnd(stage.index, last_step, reason))
        row: StageEndRow = {
            "event": "stage_end",
            **progress(ctx),
            "last_step": last_step,
            "reason": reason,
        }
        self._output.console.stage_end(row)
        self._output.write(row)

    def _ask(self, ctx: Context) -> str | None:
        """What the rule finds after this step; None: nothing, or it is not asked now."""
        if self._rule is None or ctx.step % self._when.every or not self._updates:
            return None
        loss = self._loss / self._updates
        if self._when.validation:
            means = self._evaluation.report(ctx)
            if means is None:  # the run was asked to stop; the resumed run asks the rule
                ctx.stop()
                return None
            loss = means[self._when.loss_name]
        seen = Observation(
            step=ctx.step,
            tokens=ctx.stage.tokens_at(ctx.step),
            flops=flops_at_step(ctx.stages, ctx.step, "total", ctx.run.data),
            loss=loss,
        )
        self._history.append(seen)
        self._loss, self._updates = 0.0, 0
        if ctx.step < self._when.first_step:
            return None
        # One rank is asked: a rule that is no function of the history must not divide them.
        found = gather(self._rule.ends(tuple(self._history)) if leads() else None)[0]
        if found is None:
            return None
        if not isinstance(found, str):
            raise AgreedError(
                f"stages[{ctx.stage.index}].until.rule={self._when.name} answers {found!r}; "
                "its ends() must give a text that says why the stage ends, or None"
            )
        return f"{self._when.name}: {found}"

    def state_dict(self) -> dict[str, Any]:
        """The history, and what has been summed up for its next entry."""
        history = [asdict(seen) for seen in self._history]
        return {"history": history, "loss": self._loss, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with that history."""
        self._history = [Observation(**seen) for seen in state["history"]]
        self._loss, self._updates = state["loss"], state["updates"]
