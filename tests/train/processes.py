"""``pretrain_progressive.py`` in processes that nobody watches over, as under plain ``srun``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_grow.parallel.ports import free_port
from tests.forks import CONTEXT


@dataclass
class Outcome:
    """How one rank ended."""

    code: int
    errors: str
    """Standard error."""


def start_ranks(
    directory: Path,
    argv: list[str],
    accident: Callable[[int, list[str]], None] | None = None,
    world_size: int = 2,
    timeout: float = 300,
    stopped: int | None = None,
) -> list[Outcome]:
    """Run the command on ranks that find each other by their environment alone.

    Args:
        directory: where standard error goes.
        argv: of the command.
        accident: called on each rank before the command, with its number and its ``argv``.
        world_size: how many.
        timeout: seconds, after which a rank that still runs fails the test.
        stopped: a rank that is stopped by ``accident``; it ends when the others have.
    """
    deadline = time.monotonic() + timeout
    with free_port() as port:
        places = [(rank, world_size, port) for rank in range(world_size)]
        ranks = [
            CONTEXT.Process(target=_rank, args=(*place, directory, list(argv), accident))
            for place in places
        ]
        for process in ranks:
            process.start()
        outcomes = []
        try:
            for rank, process in sorted(enumerate(ranks), key=lambda each: each[0] == stopped):
                if rank == stopped:
                    process.kill()
                process.join(max(0.0, deadline - time.monotonic()))
                said = (directory / f"errors_{rank}").read_text()
                assert process.exitcode is not None, f"rank {rank} hangs; it said: {said}"
                outcomes.append(Outcome(process.exitcode, said))
        finally:
            for process in ranks:
                process.kill()
                process.join()
    return outcomes


def at_step(step: int, action: Callable[[], None]) -> None:
    """Do ``action`` in the middle of this process's run, while it computes ``step``."""
    from megatron_grow.live.stage import LiveStage

    original = LiveStage.forward_backward

    def forward_backward(self: LiveStage, now: int, *args: Any, **kwargs: Any) -> Any:
        if now == step:
            action()
        return original(self, now, *args, **kwargs)

    LiveStage.forward_backward = forward_backward  # type: ignore[method-assign]


def _rank(
    rank: int,
    world_size: int,
    port: int,
    directory: Path,
    argv: list[str],
    accident: Callable[[int, list[str]], None] | None,
) -> None:
    errors = os.open(directory / f"errors_{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 2)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    import torch

    from megatron_grow.parallel.failure import leave
    from megatron_grow.train.entry import main

    torch.set_num_threads(1)
    if accident is not None:
        accident(rank, argv)
    leave(main(argv))
