"""The command ``pretrain_progressive.py``."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from datetime import timedelta

from megatron_grow.config.exit_codes import ExitCode
from megatron_grow.config.run import RunConfig, parse_run
from megatron_grow.data.tokenizers.vocabulary import with_vocabulary
from megatron_grow.inputs.errors import AgreedError, one_line
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.multipliers import check_optimizer
from megatron_grow.parallel.expected_warnings import ignore_expected_warnings
from megatron_grow.parallel.failure import lost_a_rank, report
from megatron_grow.parallel.last_words import tell_agent
from megatron_grow.parallel.launch import complete_environment
from megatron_grow.parallel.parent import end_with_agent
from megatron_grow.parallel.patience import Limits
from megatron_grow.parallel.watch import Watch
from megatron_grow.parametrization.table import parametrized

_RANK_0_IS_GONE = Limits(timedelta(minutes=2), timedelta(minutes=2))
"""What a rank with a mistake waits for the others to join."""


def main(argv: list[str] | None = None) -> ExitCode:
    """Run a command line.

    A user's mistake is one line on rank 0, and all ranks exit. What ends one rank is said by that
    rank, and ends the others.

    Returns:
        How the process ends, with :func:`~megatron_grow.parallel.failure.leave`: after a failure
        nothing has been shut down.
    """
    end_with_agent()
    complete_environment()
    try:
        # What the run file alone can tell is told before torch is even imported.
        config = _read(argv)
    except Exception as error:
        return _tell(error)
    try:
        return _train(config)
    except Exception as error:
        return report(error, _watch())


def _read(argv: list[str] | None) -> RunConfig:
    config = parse_run(argv)
    config = parametrized(replace(config, model=with_vocabulary(config.model, config.data)))
    stages = config.resolve(int(os.environ.get("WORLD_SIZE", "1")))
    check_optimizer(config.optimizer, [logical_tensors(stage.model) for stage in stages])
    return config


def _tell(error: Exception) -> ExitCode:
    """Say what this rank has found before it joined the job; the exit code.

    Rank 0 says it at once. Another rank may be the only one that has found it, in a file of its own
    host: it brings it to where all ranks agree, and finds rank 0 gone if that has found it too.
    """
    if os.environ["RANK"] == "0" or one_line(error) is None:
        return report(error, None)

    def found() -> None:
        raise error

    try:
        from megatron_grow.parallel import process_groups
        from megatron_grow.parallel.agreement import together

        process_groups.start(_RANK_0_IS_GONE)
        together(found)
    except AgreedError as agreed:
        return report(agreed, _watch())
    except Exception as alone:
        return ExitCode.MISTAKE if lost_a_rank(alone) else report(error, None)
    raise AssertionError("all ranks raise what one has found")


def _watch() -> Watch | None:
    """That of the job, if this process has joined it; torch may not be imported yet."""
    process_groups = sys.modules.get("megatron_grow.parallel.process_groups")
    return process_groups.watch() if process_groups else None


def _train(config: RunConfig) -> ExitCode:
    ignore_expected_warnings()

    from megatron_grow.parallel import process_groups
    from megatron_grow.parallel.agreement import leads
    from megatron_grow.train.console import Console
    from megatron_grow.train.finite import DivergedError
    from megatron_grow.train.job import Job
    from megatron_grow.train.signals import StopRequest

    step, pause = config.train.distributed_timeout_minutes, config.train.pause_timeout_minutes
    process_groups.start(Limits(timedelta(minutes=step), timedelta(minutes=pause)))
    code = ExitCode.DONE
    try:
        with StopRequest() as stop:
            job = Job(config, stop)
            if not job.run():
                code, text = ExitCode.STOPPED, _stopped(config, job.begun)
                Console(1, leads(), progress_bar=False).message(text)
                tell_agent(text)
    except DivergedError as error:
        report(error, process_groups.watch())
        return ExitCode.DIVERGED
    process_groups.stop()
    return code


def _stopped(config: RunConfig, begun: bool) -> str:
    if not begun:
        return "stopped as asked, before the first step: run the same command again"
    return (
        f"stopped as asked; {config.checkpoint_dir} holds everything: run the same command with "
        "--checkpoint.load auto to go on"
    )
