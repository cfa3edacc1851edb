"""``status.json`` says what the exit code says, which torchrun does not hand on."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from megatron_grow.checkpoint.lock import LOCK, held
from megatron_grow.inputs.errors import UserError
from megatron_grow.parallel.failure import lost_a_rank, report
from megatron_grow.train.finite import DivergedError
from megatron_grow.train.status import RunStatus


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UserError("train.lr=-1"), "mistake", 2),
        (OSError(28, "No space left on device", "/x"), "mistake", 2),
        (RuntimeError("a fault"), "failed", 1),
        (KeyboardInterrupt(), "failed", 1),
        (DivergedError("step 3"), "diverged", 3),
    ],
)
def test_an_error(error: BaseException, status: str, code: int, tmp_path: Path) -> None:
    with pytest.raises(type(error)), held(tmp_path) as me, RunStatus(tmp_path, me):
        raise error
    told = json.loads((tmp_path / "status.json").read_text())
    assert (told["status"], told["exit_code"]) == (status, code)
    if isinstance(error, Exception) and code != 3:  # the command itself knows that one
        assert report(error, None) == code


def test_a_directory_that_another_run_has_taken_over(tmp_path: Path) -> None:
    """As of a host that stood still for so long that its lock was taken for a dead one's."""
    with ExitStack() as other:
        with pytest.raises(UserError), held(tmp_path) as me, RunStatus(tmp_path, me):
            [lock] = tmp_path.glob(f"{LOCK}*")
            lock.unlink()
            other.enter_context(RunStatus(tmp_path, other.enter_context(held(tmp_path))))
            raise UserError("the lock is not this run's any more")
        assert json.loads((tmp_path / "status.json").read_text())["status"] == "running"
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "done"


def test_a_killed_loader_process_is_no_lost_rank() -> None:
    """Its rank would leave it to others to say what happened, and they know less."""
    assert lost_a_rank(RuntimeError("[pair.cc:537] Read error: Connection reset by peer"))
    assert not lost_a_rank(ConnectionResetError(104, "Connection reset by peer"))
