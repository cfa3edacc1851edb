"""One writer to a directory: who holds it is told, and who is gone does not hold it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_grow.checkpoint import lock
from megatron_grow.checkpoint.lock import check_held, held
from megatron_grow.inputs.errors import UserError

LOCK = ".lock.1"
HOLD = """
import sys, time
from pathlib import Path
from megatron_grow.checkpoint.lock import check_held, held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(directory: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", HOLD, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def elsewhere(path: Path, **changes: object) -> None:
    """Make a lock one of another host."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "host": "node7", "machine": "node7 x", **changes}))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.6)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        began = time.monotonic()
        with pytest.raises(UserError) as error, held(tmp_path):
            pass
        assert time.monotonic() - began < 5  # nobody waits for a process that is there
        message = str(error.value)
        assert "\n" not in message and str(tmp_path) in message
        assert f"process {process.pid} on {os.uname().nodename} since 20" in message
        # Killed, but not reaped: it does not hold anything any more.
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with held(tmp_path):
            (path,) = tmp_path.iterdir()
            assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_now(tmp_path: Path) -> None:
    with held(tmp_path):
        content = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps({**content, "started": content["started"] - 3600}))
    with held(tmp_path):
        pass


def test_released_whatever_ends_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_another_host_holds_it_while_it_beats(tmp_path: Path, impatient: None) -> None:
    with held(tmp_path):
        elsewhere(tmp_path / LOCK)
        with pytest.raises(UserError, match="on node7 since"), held(tmp_path):
            pass
    # A host that died: nobody touches its lock, which the holder above has not removed.
    assert (tmp_path / LOCK).exists()
    with held(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_that_says_nothing(tmp_path: Path, impatient: None, content: str) -> None:
    """Its writer was killed, or the disk was full."""
    (tmp_path / LOCK).write_text(content)
    with held(tmp_path):
        pass


def test_a_lock_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(UserError, match="FIFO"), held(tmp_path):
        pass


def take(directory: Path, all_there: threading.Barrier, taken: multiprocessing.Queue) -> None:
    all_there.wait()
    try:
        with held(directory):
            taken.put(True)
            all_there.wait()  # until all others have tried
    except UserError:
        taken.put(False)
        all_there.wait()


def test_of_many_that_find_a_stale_lock_one_takes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        with held(directory):
            stale = json.loads((directory / LOCK).read_text())
        (directory / LOCK).write_text(json.dumps({**stale, "started": 0.0}))
        all_there, taken = context.Barrier(6), context.Queue()
        jobs = [context.Process(target=take, args=(directory, all_there, taken)) for _ in range(6)]
        for job in jobs:
            job.start()
        assert sorted(taken.get(timeout=30) for _ in jobs) == [False] * 5 + [True]
        for job in jobs:
            job.join()
        assert list(directory.iterdir()) == []


def test_a_lock_that_was_taken_over(tmp_path: Path) -> None:
    """By a job to which this one, which stood still, looked dead."""
    with held(tmp_path) as me:
        check_held(tmp_path, me)
        content = json.loads((tmp_path / LOCK).read_text())
        (tmp_path / LOCK).unlink()
        with pytest.raises(UserError, match="it is gone"):
            check_held(tmp_path, me)
        other = {**content, "token": "x", "pid": 17, "host": "node7"}
        (tmp_path / ".lock.2").write_text(json.dumps(other))
        with pytest.raises(UserError, match="process 17 on node7"):
            check_held(tmp_path, me)
    assert (tmp_path / ".lock.2").exists()
