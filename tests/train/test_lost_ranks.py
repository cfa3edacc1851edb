"""A rank that falls silent: all others end in time, each host says one line, the run resumes."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import TwoHosts, why_not
from tests.cluster.torchrun import C10D, STATIC, Rendezvous, start_torchrun
from tests.train.agents import in_first_attempt
from tests.train.command import launch, losses
from tests.train.processes import Outcome, start_ranks

SHORT = "--train.distributed_timeout_minutes=0.25"
"""Silence in a growth and in a save, whose own limit is longer, ends these too."""
PATIENCE = 300
"""Seconds for a run on a busy machine; without a watch, ranks would wait for half an hour."""
WHERE = {
    "step 3": "no checkpoint has been saved",
    "the growth to stage 1": "iter_0000010",
    "the save after step 15": "iter_0000010",
}
"""What a run is at, and what its last line then says of checkpoints: it saves every five steps and
grows after step 10."""


def _when(where: str, action: Callable[[], None]) -> None:
    """Do ``action`` in the middle of ``where``."""
    import megatron_grow.checkpoint.save as save
    import megatron_grow.growth.filling as filling
    from megatron_grow.live.stage import LiveStage
    from megatron_grow.parallel import patience

    places: dict[str, tuple[Any, str]] = {
        "save": (save, "gather"),
        "growth": (filling, "transfer"),
        "step": (LiveStage, "forward_backward"),
    }
    place, name = next(places[kind] for kind in places if kind in where)
    original = getattr(place, name)

    def intercepted(*args: Any, **kwargs: Any) -> Any:
        if patience.current().what == where:
            action()
        return original(*args, **kwargs)

    setattr(place, name, intercepted)


def _is_stopped(where: str, rank: int, argv: list[str]) -> None:
    if rank == 1:
        _when(where, partial(os.kill, os.getpid(), signal.SIGSTOP))


def _enters_and_is_cut_off(hosts: TwoHosts, where: str, rank: int, argv: list[str]) -> None:
    hosts.enter(rank)
    if rank == 1:
        _when(where, hosts.cut)


def _enters(hosts: TwoHosts, rank: int, argv: list[str]) -> None:
    hosts.enter(rank)


def _is_cut_off_once(hosts: TwoHosts, where: str, rank: int, argv: list[str]) -> None:
    if rank == 1 and in_first_attempt():
        _when(where, hosts.cut)


def _argv(workplace: Path, name: str, *options: str) -> list[str]:
    config = ["--config", str(workplace / "run.yaml")]
    return [*config, "--run.output_dir", str(workplace / name), *options]


def _logs(workplace: Path, name: str) -> Path:
    logs = workplace / f"logs of {name}"
    logs.mkdir(exist_ok=True)
    return logs


def _run(
    workplace: Path, name: str, accident: Any, *options: str, stopped: int | None = None
) -> list[Outcome]:
    argv = _argv(workplace, name, *options)
    return start_ranks(_logs(workplace, name), argv, accident, timeout=PATIENCE, stopped=stopped)


def _stopped(workplace: Path, where: str) -> str:
    """What rank 0 says of a rank 1 that is stopped."""
    accident = partial(_is_stopped, where)
    return _line(_run(workplace, f"stopped in {where}", accident, SHORT, stopped=1)[0])


def _line(outcome: Outcome) -> str:
    assert outcome.code == 1, outcome
    [line] = outcome.errors.splitlines()
    return line


def _cut(workplace: Path, where: str) -> list[str]:
    """What both hosts say when the link is cut; the same command resumes when it is back."""
    name = f"cut in {where}"
    with TwoHosts() as hosts:
        lost = _run(workplace, name, partial(_enters_and_is_cut_off, hosts, where), SHORT)
        hosts.mend()
        again = _run(workplace, name, partial(_enters, hosts), "--checkpoint.load=auto")
    assert [outcome.code for outcome in again] == [0, 0], again
    return [_line(outcome) for outcome in lost]


def _cut_under_torchrun(rendezvous: Rendezvous, workplace: Path, where: str) -> list[str]:
    """What both hosts say when the link is cut; torchrun resumes by itself when it is back."""
    name = f"cut in {where}"
    argv = _argv(workplace, name, SHORT, "--checkpoint.load=auto")
    with TwoHosts() as hosts:
        accident = partial(_is_cut_off_once, hosts, where)
        agents = start_torchrun(hosts, rendezvous, 1, argv, accident, _logs(workplace, name))
        deadline = time.monotonic() + PATIENCE
        while not all(lines := [_errors(agent.output) for agent in agents]):
            assert time.monotonic() < deadline, lines
            time.sleep(0.5)
        hosts.mend()
        for agent in agents:
            agent.process.join(timeout=PATIENCE)
    assert [agent.process.exitcode for agent in agents] == [0, 0], lines
    return [line for agent in agents for line in _errors(agent.output)]


def _errors(output: Path) -> list[str]:
    return re.findall("^error.*$", output.read_text(), re.MULTILINE) if output.exists() else []


CUT: dict[str, Callable[[Path, str], list[str]]] = {
    "step 3": partial(_cut_under_torchrun, C10D),
    "the growth to stage 1": partial(_cut_under_torchrun, STATIC),
    "the save after step 15": _cut,
}


@pytest.fixture(scope="module")
def runs(workplace: Path) -> Iterator[dict[str, Future]]:
    """All at once: they wait longer than they compute."""
    with ThreadPoolExecutor(1 + len(WHERE) + len(CUT)) as pool:
        yield {
            "whole": pool.submit(launch, workplace, "whole"),
            **{f"stopped in {at}": pool.submit(_stopped, workplace, at) for at in WHERE},
            **{f"cut in {at}": pool.submit(cut, workplace, at) for at, cut in CUT.items()},
        }


@pytest.mark.parametrize("where", WHERE)
def test_a_rank_that_is_stopped(runs: dict[str, Future], where: str) -> None:
    line = runs[f"stopped in {where}"].result()
    assert line.startswith("error on rank 0 ("), line
    assert f"): in {where} " in line and " no sign of life from rank 1 (" in line, line
    assert WHERE[where] in line and "run the same command" in line, line


@pytest.mark.skipif(reason := why_not(), reason=str(reason))
@pytest.mark.parametrize("where", WHERE)
def test_a_link_that_is_cut(workplace: Path, runs: dict[str, Future], where: str) -> None:
    near, far = runs[f"cut in {where}"].result()
    assert near.startswith(f"error on rank 0 (host0): in {where} "), near
    assert "no sign of life from rank 1 (host1)" in near, near
    assert far.startswith(f"error on rank 1 (host1): in {where} "), far
    assert "no answer from the job's store on " in far, far
    assert all(WHERE[where] in line for line in (near, far))
    assert runs["whole"].result()[0] == 0
    assert losses(workplace, f"cut in {where}") == losses(workplace, "whole")
