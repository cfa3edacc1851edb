"""torchrun on two hosts, by either rendezvous."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.cluster.hosts import TwoHosts
from tests.train.agents import start_agent


@dataclass(frozen=True)
class Rendezvous:
    """How agents of several hosts meet."""

    options: tuple[str, ...]
    """Of torchrun, with the number of the host as ``{host}``."""
    environment: dict[str, str] = field(default_factory=dict)


C10D = Rendezvous(
    ("--rdzv-backend=c10d", "--rdzv-endpoint=host0:29500"),
    # Each agent counts its own attempts; in one store, ranks of different ones would not meet.
    {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
)
STATIC = Rendezvous(("--node-rank={host}", "--master-addr=10.213.7.1", "--master-port=29500"))


@dataclass(frozen=True)
class Agent:
    """A torchrun, and where it and its workers write."""

    process: ForkServerProcess
    output: Path


def start_torchrun(
    hosts: TwoHosts,
    rendezvous: Rendezvous,
    workers: int,
    argv: list[str],
    accident: Callable[[int, list[str]], None],
    directory: Path,
) -> list[Agent]:
    """Start the run on both hosts, which restart it once.

    Args:
        hosts: where.
        rendezvous: how.
        workers: on each host.
        argv: of ``pretrain_progressive.py``.
        accident: called in each worker before it, with its rank and its ``argv``.
        directory: where the agents write.
    """
    agents = []
    for host in range(2):
        meeting = [option.format(host=host) for option in rendezvous.options]
        options = ["--nnodes=2", f"--nproc-per-node={workers}", "--max-restarts=1", *meeting]
        enter = partial(_enter, hosts, host, rendezvous.environment)
        output = directory / f"host{host}"
        agents.append(Agent(start_agent(options, argv, accident, output, enter), output))
    return agents


def _enter(hosts: TwoHosts, host: int, environment: dict[str, str]) -> None:
    hosts.enter(host)
    os.environ.update(environment)
