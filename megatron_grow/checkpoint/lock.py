"""One writer to a directory, on any file system and any number of hosts."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil

from megatron_grow.files.regular import read_regular
from megatron_grow.inputs.errors import UserError

LOCK = ".lock."
"""Begins the name of a file that is there for as long as somebody writes to its directory; a number
follows, one more than that of the lock of a process that died."""
BEAT_SECONDS = 10.0
"""A holder touches its lock so often: that is seen on other hosts, which cannot see processes."""
SILENT_SECONDS = 60.0
"""A lock that nobody touches for so long is of a host that died."""
_LOOKS = 60
"""How often that is looked at."""


@dataclass(frozen=True)
class Holder:
    """The process that a directory belongs to."""

    token: str
    """Of this one holding, of one directory or of several."""
    host: str
    machine: str
    """Where its ``pid`` has a meaning: one boot of one host, and one container."""
    pid: int
    started: float
    """When the process began, in seconds since the epoch; a ``pid`` is used again."""
    since: str

    @classmethod
    def here(cls) -> Holder:
        """This process, from now on."""
        return cls(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            since=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        )

    def runs(self) -> bool:
        """Whether the process, one of this machine, is still there."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 2
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@contextlib.contextmanager
def held(directory: Path, me: Holder | None = None) -> Iterator[Holder]:
    """Hold ``directory``, which exists, as the only one; gives as whom, anew unless ``me`` says it.

    A lock is a file that is made only if it is not there, which file systems of clusters do rightly
    where they do not know ``flock``. One of a process that is gone is no obstacle: that is seen at
    once on the same host, else when it has not been touched for :data:`SILENT_SECONDS`.

    Raises:
        UserError: somebody else holds it; the message says who, and since when.
        OSError: the lock cannot be written.
    """
    me = me or Holder.here()
    path = _take(directory, me)
    ended = threading.Event()
    beat = threading.Thread(target=_touch, args=(path, ended), daemon=True)
    beat.start()
    try:
        yield me
    finally:
        ended.set()
        beat.join()
        if _holder(_read(path)) == me:
            path.unlink(missing_ok=True)


def check_held(directory: Path, me: Holder) -> None:
    """Raise :class:`UserError` if ``directory`` is no longer held by ``me``.

    A host that stood still for long, or hung, may find that another job has taken its place.
    """
    holders = [_holder(content) for content in _locks(directory).values()]
    if me not in holders:
        other = next(filter(None, holders), None)
        who = f"process {other.pid} on {other.host} has taken it over" if other else "it is gone"
        raise UserError(f"the lock of {directory} is not this run's any more: {who}")


def _take(directory: Path, me: Holder) -> Path:
    while True:
        stale = _locks(directory)
        for path, content in stale.items():
            _refuse_if_alive(path, _holder(content), me)
        mine = directory / f"{LOCK}{max(map(_number, stale), default=0) + 1}"
        if not _create(mine, me):
            continue
        others = _locks(directory)
        del others[mine]
        if others == stale:  # nobody else has found them stale, and been faster
            for path in stale:
                path.unlink()
            return mine
        mine.unlink()
        time.sleep(secrets.randbelow(100) / 1000)


def _locks(directory: Path) -> dict[Path, bytes]:
    """Locks in a directory, and what they say."""
    paths = [path for path in directory.glob(f"{LOCK}*") if path.suffix[1:].isdigit()]
    contents = {path: _read(path) for path in paths}
    return {path: content for path, content in contents.items() if content is not None}


def _number(path: Path) -> int:
    return int(path.suffix[1:])


def _holder(content: bytes | None) -> Holder | None:
    """Whom a lock names; None if it is gone, or its writer was killed before it said anything."""
    try:
        return Holder(**json.loads(content)) if content else None
    except (ValueError, TypeError):
        return None


def _create(path: Path, me: Holder) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with open(descriptor, "w") as file:
            file.write(json.dumps(asdict(me)))
            file.flush()
            os.fsync(descriptor)
    except OSError:  # an empty lock would keep everybody out
        path.unlink()
        raise
    return True


def _refuse_if_alive(path: Path, holder: Holder | None, me: Holder) -> None:
    local = holder if holder is not None and holder.machine == me.machine else None
    if local.runs() if local is not None else _touched(path):
        who = f"process {holder.pid} on {holder.host} since {holder.since}" if holder else "a job"
        raise UserError(
            f"{path.parent} is being written to by {who}; wait for its end, or name another "
            f"directory ({path} is its lock)"
        )


def _touched(path: Path) -> bool:
    """Whether somebody touches a lock within :data:`SILENT_SECONDS`."""
    first = _beat(path)
    for _ in range(_LOOKS):  # not until a time: a file server that hangs stops both
        time.sleep(SILENT_SECONDS / _LOOKS)
        now = _beat(path)
        if first is None or now != first:
            return now is not None
    return False


def _beat(path: Path) -> int | None:
    """When a lock was touched last; None if it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)  # opening asks the server, where stat may remember
    except FileNotFoundError:
        return None
    try:
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)


def _touch(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # the next one may come through
            os.utime(path)


def _read(path: Path) -> bytes | None:
    """What a lock says, once its maker has written it; None if it is gone."""
    for _ in range(20):
        try:
            content = read_regular(path)
        except FileNotFoundError:
            return None
        if content:
            break
        time.sleep(0.05)
    return content


def _machine() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not on Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
