"""One process at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from megatron_grow.files.lock import locked
from megatron_grow.inputs.errors import UserError


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, "first"):
        with pytest.raises(UserError, match=r"^taken$"), locked(path, "taken", needed=False):
            pass
        assert path.exists()
    assert not path.exists()
    with locked(path, "free again"):
        path.unlink()  # with all that stands beside it, say


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="lock cannot be locked: No locks available"):
        locked(path, "taken").__enter__()
    with locked(path, "taken", needed=False):
        assert path.exists()
    assert not path.exists()


def test_a_lock_that_its_holder_removes_meanwhile(tmp_path: Path, monkeypatch) -> None:
    """The file that was opened is no longer the one that others find; so it is opened again."""
    path, flock = tmp_path / "lock", fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with (
        locked(path, "first"),
        pytest.raises(UserError, match="taken"),
        locked(path, "taken"),
    ):
        pass
    assert not path.exists()
