"""torchrun on two hosts: a growth across them, and a killed rank that restarts both."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.hosts import TwoHosts, why_not
from tests.cluster.torchrun import C10D, STATIC, Rendezvous, start_torchrun
from tests.train.agents import in_first_attempt
from tests.train.command import launch, losses, rows
from tests.train.conftest import workplace
from tests.train.processes import at_step

__all__ = ["workplace"]  # a fixture
STAGES = json.dumps(
    [
        {"until": 0.5, "model": {"num_layers": 0}},
        {
            "grow": {"depth": "random"},
            "parallel": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
        },
    ]
)


RUNS = {"c10d": (C10D, 8), "static": (STATIC, 13)}
"""By which rendezvous, and the step in which a rank is killed: before the growth, or after it."""


def _is_killed(step: int, rank: int, argv: list[str]) -> None:
    if rank == 3 and in_first_attempt():
        at_step(step, partial(os.kill, os.getpid(), signal.SIGKILL))


def _run(rendezvous: Rendezvous, killed: int, output: Path, argv: list[str]) -> list[str]:
    """What two workers on each of two hosts say until the run is done."""
    directory = output.with_name(f"logs of {output.name}")
    directory.mkdir()
    argv = [*argv, "--run.output_dir", str(output), "--checkpoint.load", "auto"]
    with TwoHosts() as hosts:
        accident = partial(_is_killed, killed)
        agents = start_torchrun(hosts, rendezvous, 2, argv, accident, directory)
        for agent in agents:
            agent.process.join(timeout=300)
    said = [agent.output.read_text() for agent in agents]
    assert [agent.process.exitcode for agent in agents] == [0, 0], said
    return said


@pytest.fixture(scope="module")
def runs(workplace: Path) -> Iterator[dict[str, Future]]:
    """All at once: agents wait for each other more than they compute."""
    argv = ["--config", str(workplace / "run.yaml"), "--stages", STAGES]
    with ThreadPoolExecutor(1 + len(RUNS)) as pool:
        yield {
            "one host": pool.submit(launch, workplace, "one host", *argv[2:], world_size=4),
            **{name: pool.submit(_run, *run, workplace / name, argv) for name, run in RUNS.items()},
        }


@pytest.mark.skipif(reason := why_not(), reason=str(reason))
@pytest.mark.parametrize(("name", "resumed"), [("c10d", 5), ("static", 10)])
def test_a_run_on_two_hosts(
    name: str, resumed: int, runs: dict[str, Future], workplace: Path
) -> None:
    said = "".join(runs[name].result())
    assert said.count(f"at step {resumed}") == 1, "it was killed, and resumed"
    assert runs["one host"].result()[0] == 0
    assert losses(workplace, name) == losses(workplace, "one host")
    [growth] = [row for row in rows(workplace, name) if row.get("event") == "growth"]
    assert (growth["from_layout"], growth["to_layout"]) == ("TP1 PP1 DP4", "TP2 PP2 DP1")
