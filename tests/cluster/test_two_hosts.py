"""torchrun on two hosts: a growth across them, and a killed rank that restarts both."""

from __future__ import annotations

import json
import os
import signal
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


@pytest.fixture(scope="module")
def one_host(workplace: Path) -> dict[int, float]:
    code, _, errors = launch(workplace, "one_host", f"--stages={STAGES}", world_size=4)
    assert code == 0, errors
    return losses(workplace, "one_host")


def _is_killed(step: int, rank: int, argv: list[str]) -> None:
    if rank == 3 and in_first_attempt():
        at_step(step, partial(os.kill, os.getpid(), signal.SIGKILL))


@pytest.mark.skipif(reason := why_not(), reason=str(reason))
@pytest.mark.parametrize(
    ("rendezvous", "killed", "resumed"),
    [(C10D, 8, 5), (STATIC, 13, 10)],
    ids=["c10d, before the growth", "static, after it"],
)
def test_a_run_on_two_hosts(
    rendezvous: Rendezvous,
    killed: int,
    resumed: int,
    one_host: dict[int, float],
    workplace: Path,
    tmp_path: Path,
) -> None:
    name = f"killed {killed}"
    argv = [
        *("--config", str(workplace / "run.yaml"), "--stages", STAGES),
        *("--run.output_dir", str(workplace / name), "--checkpoint.load", "auto"),
    ]
    with TwoHosts() as hosts:
        agents = start_torchrun(hosts, rendezvous, 2, argv, partial(_is_killed, killed), tmp_path)
        for agent in agents:
            agent.process.join(timeout=300)
    said = [agent.output.read_text() for agent in agents]
    assert [agent.process.exitcode for agent in agents] == [0, 0], said
    assert "".join(said).count(f"at step {resumed}") == 1, "it was killed, and resumed"
    assert losses(workplace, name) == one_host
    [growth] = [row for row in rows(workplace, name) if row.get("event") == "growth"]
    assert (growth["from_layout"], growth["to_layout"]) == ("TP1 PP1 DP4", "TP2 PP2 DP1")
