"""The run's checkpoints: when they are written, and what their records say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_grow.checkpoint.record import GrowthEvent, Record, StageEnd
from megatron_grow.inputs.errors import AgreedError
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.parallel.last_words import remember_checkpoint
from megatron_grow.train.finite import FiniteGuard
from megatron_grow.train.output import Output
from megatron_grow.train.preflight import Prepared
from megatron_grow.train.saves import Saves


class Saving(TrainingMethod):
    """Saves after every ``checkpoint.save_interval`` steps."""

    def __init__(
        self, prepared: Prepared, output: Output, guard: FiniteGuard, saves: Saves
    ) -> None:
        """Save what ``guard`` finds finite."""
        self._prepared, self._output, self._guard = prepared, output, guard
        self._saves = saves
        start = prepared.start
        self.growths: list[GrowthEvent] = list(start.growths) if start else []
        """Of the run so far."""
        self.stage_ends: list[StageEnd] = list(start.ends) if start else []
        """Those that are known, of stages that might end before ``at_most``."""
        if start is not None and start.resumes:
            saves.last = start.step, start.path
            remember_checkpoint(start.path)

    def after_step(self, ctx: Context) -> None:
        """Save if it is due; the trainer does where the run stops."""
        interval = ctx.run.checkpoint.save_interval
        if interval and ctx.step % interval == 0 and not ctx.stopping:
            self._write(ctx, self._saves.begin)

    def sees(self, ctx: Context) -> bool:
        """Whether this rank's part of a save that was under way has ended."""
        return self._saves.done

    def before_update(self, ctx: Context, seen: bool) -> None:
        """Take note of its end, on all ranks in the same step."""
        if seen:
            self._saves.finish()

    def on_stage_end(self, ctx: Context) -> None:
        """Leave none under way: a growth needs the memory."""
        self._saves.finish()

    def save(self, ctx: Context) -> Path:
        """Save, once for each step; the checkpoint, which is complete."""
        self._saves.finish()
        if self._saves.last is None or self._saves.last[0] != ctx.step:
            self._write(ctx, self._saves.save)
        assert self._saves.last is not None
        return self._saves.last[1]

    def _write(self, ctx: Context, how: Callable[..., None]) -> None:
        self._guard.check_state(ctx)
        config = ctx.run
        how(
            config.checkpoint_dir,
            self._record(ctx),
            [*ctx.live.pieces(), *ctx.kept()],
            ctx.live.tensors,
            with_optimizer=config.checkpoint.save_optimizer,
            keep_last=config.checkpoint.keep_last,
            keep=[past.last_step for past in ctx.stages[: ctx.stage.index] if past.release],
            holder=self._prepared.holder,
        )

    def _record(self, ctx: Context) -> Record:
        stage, config, choice = ctx.stage, ctx.run, self._prepared.choice
        tokens = stage.tokens_at(ctx.step)
        return Record(
            step=ctx.step,
            stage=stage.index,
            consumed_samples=tokens // config.train.seq_length,
            consumed_tokens=tokens,
            optimizer_step=ctx.live.updates,
            model=asdict(stage.model),
            precision=config.train.precision,
            config=asdict(config),
            growths=self.growths,
            stage_ends=self.stage_ends,
            parallel=asdict(stage.parallel),
            skipped_iters=self._guard.skipped,
            wandb_id=self._output.wandb_id,
            corpora=self._prepared.corpora,
            run_id=choice.run_id,
            begun_from=list(choice.begun_from),
            methods=_states(ctx),
        )


def _states(ctx: Context) -> dict[str, Any]:
    """What the methods of the stage remember, by their place in its section."""
    states = {place: method.state_dict() for place, method in ctx.methods.items()}
    for place, state in states.items():
        try:
            json.dumps(state)
        except (TypeError, ValueError) as error:
            raise AgreedError(
                f"stages[{ctx.stage.index}].{place}: its state_dict() is not of JSON's types "
                f"({error}); tensors belong in pieces()"
            ) from None
    return {place: state for place, state in states.items() if state}
