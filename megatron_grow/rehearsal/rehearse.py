"""A rehearsal: a run up to its last stage and a stop there, then its resume."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from megatron_grow.config.exit_codes import ExitCode
from megatron_grow.config.run import RunConfig, parse_run
from megatron_grow.config.stages import Stage
from megatron_grow.cost.devices import Device
from megatron_grow.data.tokenizers.vocabulary import with_vocabulary
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.rehearsal import data, ranks, shim
from megatron_grow.rehearsal.rank import RankReport, Task

SMALL_CHECKPOINT = 2_000_000_000
"""Bytes."""


@dataclass
class Rehearsal:
    """What came of it."""

    config: RunConfig
    stages: list[Stage]
    world_size: int
    device: Device
    saves: bool
    """Whether a save and a resume were rehearsed."""
    jobs: dict[str, list[RankReport]]
    """What ranks report: of ``run`` and, if that stopped as it should, of ``resume``."""

    @property
    def failed(self) -> bool:
        """Whether the job would not have come to its end."""
        return any(rank.code for rank in [*self.jobs.values()][-1])


def rehearse(
    argv: list[str],
    *,
    world_size: int,
    passes: Collection[int],
    device: Device,
    steps: int = 2,
    saves: bool | None = None,
) -> Rehearsal:
    """Rehearse a command line of ``pretrain_progressive.py``.

    Args:
        argv: without the program.
        world_size: ranks.
        passes: those that go through forward and backward passes.
        device: what each of them has.
        steps: at the beginning of each stage, before its last.
        saves: whether the run saves in its last stage and is resumed from there; None: where that
            writes less than :data:`SMALL_CHECKPOINT`. Else it goes on to its end.

    Raises:
        UserError: a run that cannot work, or another torch than it can be rehearsed with.
    """
    config = parse_run(argv)
    shim.check()
    with tempfile.TemporaryDirectory(prefix="rehearsal_") as name:
        directory = Path(name)
        argv = [*argv, *_elsewhere(config, directory), *data.options(config, directory)]
        read = parse_run(argv)
        config = replace(read, model=with_vocabulary(read.model, read.data))
        stages = config.resolve(world_size)
        jobs: dict[str, list[RankReport]] = {}
        if saves is None:
            saves = checkpoint_size(config, stages[-1]) < SMALL_CHECKPOINT
        for job in ("run", "resume") if saves else ("run",):
            stop = saves and job == "run"
            task = Task(argv, world_size, device, frozenset(passes), steps, stop, saves)
            (directory / job).mkdir()
            jobs[job] = ranks.run(task, directory / job)
            if any(rank.code not in (ExitCode.DONE, ExitCode.STOPPED) for rank in jobs[job]):
                break
    return Rehearsal(config, stages, world_size, device, saves, jobs)


def checkpoint_size(config: RunConfig, stage: Stage) -> int:
    """Bytes of a checkpoint of a stage, about."""
    optimizer = optimizer_of(config.optimizer)
    weights = 2 if config.train.precision == "bf16" else 0
    return sum(
        prod(tensor.shape) * (weights + 4 * (1 + len(optimizer.rule(tensor).states)))
        for tensor in logical_tensors(stage.model).values()
    )


def _elsewhere(config: RunConfig, directory: Path) -> list[str]:
    """What of the command line keeps a run from its own directories, and makes it resume."""
    load = [] if config.checkpoint.load_directory else ["--checkpoint.load=auto"]
    return [
        f"--run.output_dir={directory / 'output'}",
        "--run.overwrite=false",
        "--checkpoint.save=null",
        *load,
        "--data.cache_dir=null",
        "--data.num_workers=0",
        "--logging.tensorboard=false",
        "--logging.wandb_project=null",
        "--logging.progress_bar=false",
    ]
