"""The command ``pretrain_progressive.py``."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace

from megatron_grow.config.errors import UserError
from megatron_grow.config.run import RunConfig, parse_run
from megatron_grow.data.vocabulary import with_vocabulary
from megatron_grow.parallel.expected_warnings import ignore_expected_warnings
from megatron_grow.parallel.launch import complete_environment
from megatron_grow.parallel.parent import end_with_agent
from megatron_grow.train.exit_codes import ExitCode


def main(argv: list[str] | None = None) -> int:
    """Run a command line.

    A user's mistake is one line on rank 0, and all ranks exit.

    Returns:
        One of :class:`~megatron_grow.train.exit_codes.ExitCode`.
    """
    end_with_agent()
    complete_environment()
    try:
        config = parse_run(argv)
        config = replace(config, model=with_vocabulary(config.model, config.data))
        # What the run file alone can tell is told before torch is even imported.
        config.resolve(int(os.environ.get("WORLD_SIZE", "1")))
        return _train(config)
    except UserError as error:
        _complain(error)
        return ExitCode.MISTAKE


def _complain(reason: object) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {reason}", file=sys.stderr, flush=True)


def _train(config: RunConfig) -> ExitCode:
    ignore_expected_warnings()
    import torch.distributed as dist

    from megatron_grow.parallel import process_groups
    from megatron_grow.parallel.agreement import together
    from megatron_grow.train.announce import announcements
    from megatron_grow.train.console import Console
    from megatron_grow.train.finite import DivergedError
    from megatron_grow.train.metrics import MetricsLog
    from megatron_grow.train.preflight import check, prepare
    from megatron_grow.train.run_directory import claimed, make_room
    from megatron_grow.train.status import RunStatus
    from megatron_grow.train.trainer import Trainer, write_resolved_config

    process_groups.start()
    try:
        checked = together(lambda: check(config))
        with ExitStack() as stack:
            stack.enter_context(claimed(config))
            prepared = prepare(checked)
            speaks, start, resumed = dist.get_rank() == 0, prepared.start, prepared.resumed
            notes, metrics, status = [], None, None
            if speaks:
                notes = make_room(config, prepared.choice)
                write_resolved_config(prepared)
                status = stack.enter_context(RunStatus(config.run.output_dir))
                metrics = MetricsLog(
                    config.run.output_dir,
                    begins=not prepared.choice.own,
                    resume_step=start.step if start else 0,
                    resume_stage=start.stage if start else 0,
                    tensorboard=config.logging.tensorboard,
                    wandb_project=config.logging.wandb_project,
                    wandb_id=resumed.wandb_id if resumed and prepared.choice.own else None,
                    run_name=config.run.name,
                )
                stack.callback(metrics.close)
            console = stack.enter_context(
                Console(config.train.train_iters, speaks, config.logging.progress_bar)
            )
            for line in (*notes, *announcements(prepared)):
                console.message(line)
            code = ExitCode.DONE
            if not Trainer(prepared, console, metrics).run():
                code = ExitCode.STOPPED
                console.message(
                    f"stopped as asked; {config.checkpoint_dir} holds everything: "
                    "run the same command with --checkpoint.load auto to go on"
                )
            if status is not None:
                status.code = code
            return code
    except DivergedError as error:
        _complain(error)
        return ExitCode.DIVERGED
    finally:
        process_groups.stop()
