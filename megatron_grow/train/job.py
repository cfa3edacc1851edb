"""A run and the branches that its stages release, one after another in the same processes.

A branch is a run of its own (:mod:`~megatron_grow.train.releases`). The trunk stops at the end of a
stage that releases one, lets go of its model, and then goes on from the checkpoint that it has
saved there, as after any stop.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from megatron_grow.config.exit_codes import ExitCode
from megatron_grow.config.run import RunConfig
from megatron_grow.parallel.agreement import leads, together
from megatron_grow.train.announce import announcements
from megatron_grow.train.console import Console
from megatron_grow.train.metrics import MetricsLog
from megatron_grow.train.preflight import Prepared, check, prepare
from megatron_grow.train.releases import export
from megatron_grow.train.run_directory import claimed, make_room
from megatron_grow.train.signals import StopRequest
from megatron_grow.train.status import RunStatus
from megatron_grow.train.trainer import Ended, Trainer


class Job:
    """Trains a run and what it releases."""

    def __init__(self, config: RunConfig, stop: StopRequest) -> None:
        """Nothing is looked at yet."""
        self._config, self._stop = config, stop
        self._status: RunStatus | None = None
        self.begun = False
        """Whether it came to its first step before it was asked to stop."""

    def run(self) -> bool:
        """True if the run reached its end, False if it saved and stopped on request.

        Every rank takes part. The directories are held until the branches are finished too, and
        ``status.json`` says ``running`` so long.

        Raises:
            UserError: whatever cannot work.
            DivergedError: what the run or a branch has computed is not finite, and is not saved.
        """
        config = self._config
        checked = together(lambda: check(config))
        with ExitStack() as stack:
            holder = stack.enter_context(claimed(config))
            while True:
                ended = self._train(prepare(checked, holder), stack)
                if ended.branch is None:
                    return self._end(ended.done)
                if not Job(ended.branch.config, self._stop).run():
                    return self._end(False)
                export(ended.branch)
                if ended.done:
                    return self._end(True)
                checked = together(lambda: check(_going_on(config)))

    def _train(self, prepared: Prepared, stack: ExitStack) -> Ended:
        """Train as far as one model goes; ``stack`` is left when the run ends."""
        config, start, speaks = prepared.config, prepared.start, leads()
        with ExitStack() as leg:
            console = leg.enter_context(
                Console(config.train.train_iters, speaks, config.logging.progress_bar)
            )

            def open_output() -> tuple[list[str], MetricsLog]:
                notes = make_room(config, prepared.choice)
                if self._status is None:
                    assert prepared.holder is not None, "this rank holds the directories"
                    status = RunStatus(config.run.output_dir, prepared.holder)
                    self._status = stack.enter_context(status)
                resumed = prepared.resumed
                metrics = MetricsLog(
                    config.run.output_dir,
                    begins=not prepared.choice.own,
                    resume_step=start.step if start else 0,
                    resume_stage=start.stage if start else 0,
                    tensorboard=config.logging.tensorboard,
                    wandb_project=config.logging.wandb_project,
                    wandb_id=resumed.wandb_id if resumed and prepared.choice.own else None,
                    run_name=config.run.name,
                    warn=console.warning,
                )
                return notes, leg.enter_context(metrics)

            notes, metrics = together(lambda: open_output() if speaks else ([], None))
            for line in (*notes, *announcements(prepared)):
                console.message(line)
            if self._stop.poll():
                return Ended(False)
            self.begun = True
            return Trainer(prepared, console, metrics, self._stop).run()

    def _end(self, done: bool) -> bool:
        if self._status is not None:
            self._status.code = ExitCode.DONE if done else ExitCode.STOPPED
        return done


def _going_on(config: RunConfig) -> RunConfig:
    """The run after a branch: from its own newest checkpoint, as a directory in ``load`` does
    too where it has been followed once."""
    return replace(
        config,
        run=replace(config.run, overwrite=False),
        checkpoint=replace(config.checkpoint, load=config.checkpoint.load or "auto"),
    )
