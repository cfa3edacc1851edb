"""The command ``pretrain_progressive.py``."""

from __future__ import annotations

import os
import sys

from megatron_grow.config.errors import UserError
from megatron_grow.config.run import RunConfig, parse_run


def main(argv: list[str] | None = None) -> int:
    """Run a command line; the exit code: 0 for done, or saved and stopped as asked; 2 for a mistake.

    A user's mistake is one line on rank 0; all ranks exit.
    """
    try:
        return _train(parse_run(argv))
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def _train(config: RunConfig) -> int:
    # Imported late: a mistake in the run file needs no torch to be found.
    import torch.distributed as dist

    from megatron_grow.parallel import process_groups
    from megatron_grow.parallel.agreement import together
    from megatron_grow.train.console import Console
    from megatron_grow.train.metrics import MetricsLog
    from megatron_grow.train.preflight import prepare
    from megatron_grow.train.trainer import Trainer, write_resolved_config

    process_groups.start()
    try:
        prepared = together(lambda: prepare(config))
        config, speaks = prepared.config, dist.get_rank() == 0
        step = prepared.start.record.step if prepared.start else 0
        metrics = None
        if speaks:
            write_resolved_config(prepared)
            metrics = MetricsLog(
                config.run.output_dir,
                resume_step=step,
                tensorboard=config.logging.tensorboard,
                wandb_project=config.logging.wandb_project,
                run_name=config.run.name,
            )
        with Console(config.train.train_iters, speaks, config.logging.progress_bar) as console:
            try:
                if not Trainer(prepared, console, metrics).run():
                    console.message(
                        f"stopped as asked; {config.checkpoint_dir} holds everything: "
                        "run the same command with --checkpoint.load auto to go on"
                    )
            finally:
                if metrics is not None:
                    metrics.close()
    finally:
        process_groups.stop()
    return 0
