"""torchrun itself, whose workers are forked from a warm process instead of importing everything."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.forks import CONTEXT

_WORKER = Path(__file__).with_name("worker.py")


def start_agent(
    options: list[str],
    argv: list[str],
    accident: Callable[[int, list[str]], None],
    output: Path,
    before: Callable[[], None] | None = None,
) -> ForkServerProcess:
    """Start ``torchrun`` on ``pretrain_progressive.py``.

    Args:
        options: of torchrun.
        argv: of the command.
        accident: called in each worker before the command, with its rank and its ``argv``.
        output: where the agent and its workers write.
        before: called in the agent's process first.
    """
    agent = CONTEXT.Process(target=_agent, args=(options, argv, accident, output, before))
    agent.start()
    return agent


def in_first_attempt() -> bool:
    """Whether this worker's agent has not restarted it yet."""
    return os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"


def _agent(
    options: list[str],
    argv: list[str],
    accident: Callable[[int, list[str]], None],
    output: Path,
    before: Callable[[], None] | None,
) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if before is not None:
        before()
    pickled = output.with_suffix(".accident")
    pickled.write_bytes(pickle.dumps(accident))
    from torch.distributed.run import main

    main([*options, "--start-method=fork", "--run-path", str(_WORKER), str(pickled), *argv])
