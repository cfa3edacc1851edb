"""torchrun itself, whose workers are forked from a warm process instead of importing everything."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm"])


def start_agent(
    argv: list[str],
    output: Path,
    environment: Mapping[str, str] = {},
    before: Callable[[], None] | None = None,
) -> ForkServerProcess:
    """Start ``torchrun`` with a command line.

    Args:
        argv: its arguments, the script and those of the script.
        output: where the agent and its workers write.
        environment: variables of the agent and its workers.
        before: called in the agent's process first.
    """
    agent = _CONTEXT.Process(target=_agent, args=(argv, output, environment, before))
    agent.start()
    return agent


def _agent(
    argv: list[str],
    output: Path,
    environment: Mapping[str, str],
    before: Callable[[], None] | None,
) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if before is not None:
        before()
    os.environ.update(environment)
    from torch.distributed.run import main

    main(["--start-method=fork", "--run-path", *argv])
