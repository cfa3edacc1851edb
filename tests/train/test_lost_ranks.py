"""A rank that falls silent: all others end in time, each host says one line, the run resumes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import TwoHosts, why_not
from tests.train.command import launch, losses
from tests.train.processes import Outcome, start_ranks

SHORT = "--train.distributed_timeout_minutes=0.25"
"""Silence in a growth and in a save, whose own limit is longer, ends these too."""
AT_ONCE = 100
"""Seconds, start and imports on a busy machine included."""
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


def _is_cut_off(hosts: TwoHosts, where: str, rank: int, argv: list[str]) -> None:
    hosts.enter(rank)
    if rank == 1:
        _when(where, hosts.cut)


def _is_well(hosts: TwoHosts, rank: int, argv: list[str]) -> None:
    hosts.enter(rank)


def _run(
    workplace: Path, name: str, accident: Any, *options: str, stopped: int | None = None
) -> list[Outcome]:
    logs = workplace / f"logs of {name}"
    logs.mkdir(exist_ok=True)
    argv = ["--config", str(workplace / "run.yaml"), "--run.output_dir", str(workplace / name)]
    return start_ranks(logs, [*argv, *options], accident, timeout=300, stopped=stopped)


def _line(outcome: Outcome) -> str:
    assert outcome.code == 1 and outcome.seconds < AT_ONCE, outcome
    lines = outcome.errors.splitlines()
    [line] = [line for line in lines if not line.startswith("[W")]  # of torch's sockets
    return line


def test_a_rank_that_is_stopped(workplace: Path) -> None:
    with ThreadPoolExecutor() as pool:
        runs = {
            where: pool.submit(
                _run, workplace, where, partial(_is_stopped, where), SHORT, stopped=1
            )
            for where in WHERE
        }
    for where, run in runs.items():
        line = _line(run.result()[0])
        assert line.startswith("error on rank 0 ("), line
        assert f"): in {where} " in line and " no sign of life from rank 1 (" in line, line
        assert WHERE[where] in line and "run the same command" in line, line


@pytest.mark.skipif(reason := why_not(), reason=str(reason))
def test_a_link_that_is_cut(workplace: Path) -> None:
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(launch, workplace, "whole")
        runs = {where: pool.submit(_cut, workplace, where) for where in WHERE}
    assert whole.result()[0] == 0
    for where, run in runs.items():
        lost, again = run.result()
        near, far = map(_line, lost)
        assert near.startswith(f"error on rank 0 (host0): in {where} ")
        assert "no sign of life from rank 1 (host1)" in near
        assert far.startswith(f"error on rank 1 (host1): in {where} ")
        assert "no answer from the job's store on 10.213.7.1:" in far
        assert all(WHERE[where] in line for line in (near, far))
        assert [outcome.code for outcome in again] == [0, 0], again
        assert losses(workplace, f"cut {where}") == losses(workplace, "whole")


def _cut(workplace: Path, where: str) -> tuple[list[Outcome], list[Outcome]]:
    """How a run ends whose link is cut, and the same command when the link is back."""
    with TwoHosts() as hosts:
        lost = _run(workplace, f"cut {where}", partial(_is_cut_off, hosts, where), SHORT)
        hosts.mend()
        again = partial(_is_well, hosts)
        return lost, _run(workplace, f"cut {where}", again, "--checkpoint.load=auto")
