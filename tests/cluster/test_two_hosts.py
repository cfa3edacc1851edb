"""torchrun on two hosts: a growth across them, and a killed rank that restarts both."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.hosts import TwoHosts, why_not
from tests.train.agents import start_agent
from tests.train.command import launch, losses, rows
from tests.train.conftest import workplace
from tests.train.test_torchrun import SIGNALLED

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
C10D = ["--rdzv-backend=c10d", "--rdzv-endpoint=host0:29500"]
STATIC = ["--node-rank={host}", "--master-addr=10.213.7.1", "--master-port=29500"]
STORE_OF_EACH_ATTEMPT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Agents of c10d count attempts each by itself, and ranks of different ones would not meet."""


@pytest.fixture(scope="module")
def one_host(workplace: Path) -> dict[int, float]:
    code, _, errors = launch(workplace, "one_host", f"--stages={STAGES}", world_size=4)
    assert code == 0, errors
    return losses(workplace, "one_host")


@pytest.mark.skipif(reason := why_not(), reason=str(reason))
@pytest.mark.parametrize(
    ("rendezvous", "environment", "killed", "resumed"),
    [(C10D, STORE_OF_EACH_ATTEMPT, 8, 5), (STATIC, {}, 13, 10)],
    ids=["c10d, before the growth", "static, after it"],
)
def test_a_run_on_two_hosts(
    rendezvous: list[str],
    environment: dict[str, str],
    killed: int,
    resumed: int,
    one_host: dict[int, float],
    workplace: Path,
    tmp_path: Path,
) -> None:
    name = f"killed {killed}"
    run = [
        *(SIGNALLED, "3", str(killed), "SIGKILL"),
        *("--config", str(workplace / "run.yaml"), "--stages", STAGES),
        *("--run.output_dir", str(workplace / name), "--checkpoint.load", "auto"),
    ]
    outputs = [tmp_path / f"host{host}" for host in range(2)]
    with TwoHosts() as hosts:
        agents = []
        for host, output in enumerate(outputs):
            meeting = [word.format(host=host) for word in rendezvous]
            argv = ["--nnodes=2", "--nproc-per-node=2", "--max-restarts=1", *meeting, *run]
            agents.append(start_agent(argv, output, environment, partial(hosts.enter, host)))
        for agent in agents:
            agent.join(timeout=300)
    said = [output.read_text() for output in outputs]
    assert [agent.exitcode for agent in agents] == [0, 0], said
    assert "".join(said).count(f"at step {resumed}") == 1, "it was killed, and resumed"
    assert losses(workplace, name) == one_host
    [growth] = [row for row in rows(workplace, name) if row.get("event") == "growth"]
    assert (growth["from_layout"], growth["to_layout"]) == ("TP1 PP1 DP4", "TP2 PP2 DP1")
