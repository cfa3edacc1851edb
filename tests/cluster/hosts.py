"""Two hosts on one machine: network namespaces with their own addresses, and a cable."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
INTERFACE = "cable"
"""At both ends."""
_NETWORK, _HOST_NAME = 0x40000000, 0x04000000
"""CLONE_NEWNET and CLONE_NEWUTS."""
_NUMBERS = itertools.count()


def why_not() -> str | None:
    """What is missing here for :class:`TwoHosts`; None where nothing is."""
    if sys.platform != "linux" or not all(map(shutil.which, ("ip", "unshare"))):
        return "network namespaces need Linux, with ip (iproute2) and unshare (util-linux)"
    try:
        with TwoHosts():
            return None
    except subprocess.CalledProcessError as error:
        return f"no right to make network namespaces: {error.stderr.strip()}"


class TwoHosts:
    """``host0`` and ``host1``, as a context manager; what runs on them at the end is killed."""

    addresses = ("10.213.7.1", "10.213.7.2")

    def __init__(self) -> None:
        self._unique = f"mg{os.getpid()}_{next(_NUMBERS)}"
        self._names = [f"{self._unique}_host{host}" for host in range(2)]

    def __enter__(self) -> TwoHosts:
        ends = [f"{self._unique}e{host}" for host in range(2)]
        for name in self._names:
            _ip("netns", "add", name)
        try:
            _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for name, end, address in zip(self._names, ends, self.addresses, strict=True):
                _ip("link", "set", end, "netns", name, "name", INTERFACE)
                _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
                for each in ("lo", INTERFACE):
                    _ip("-n", name, "link", "set", each, "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self._names:
            for process in _ip("netns", "pids", name).split():
                subprocess.run(["kill", "-9", process], check=False, stderr=subprocess.DEVNULL)
            _ip("netns", "delete", name)  # and its end of the cable, which takes the other

    def start(self, host: int, argv: Sequence[str], output: Path) -> subprocess.Popen[str]:
        """Start a command on a host, which knows both by name; its words go to ``output``."""
        known = output.with_suffix(".hosts")
        known.write_text(
            "127.0.0.1 localhost\n"
            + "".join(f"{address} host{n}\n" for n, address in enumerate(self.addresses))
        )
        # ip gives it mounts of its own.
        prepare = f'mount --bind {known} /etc/hosts && hostname host{host} && exec "$@"'
        namespaces = ["ip", "netns", "exec", self._names[host], "unshare", "--uts"]
        with output.open("w") as file:
            return subprocess.Popen(
                [*namespaces, "sh", "-c", prepare, "sh", *argv],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "OMP_NUM_THREADS": "1",
                    "GLOO_SOCKET_IFNAME": INTERFACE,
                },
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def enter(self, host: int) -> None:
        """Move this process, which must have no threads yet, to a host."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self._names[host]}") as namespace:
            done = libc.setns(namespace.fileno(), _NETWORK) or libc.unshare(_HOST_NAME)
        assert done == 0, os.strerror(ctypes.get_errno())
        socket.sethostname(f"host{host}")
        os.environ.update(MASTER_ADDR=self.addresses[0], GLOO_SOCKET_IFNAME=INTERFACE)

    def cut(self) -> None:
        """Pull the cable out of ``host1``."""
        _ip("-n", self._names[1], "link", "set", INTERFACE, "down")

    def mend(self) -> None:
        """Put it in again."""
        _ip("-n", self._names[1], "link", "set", INTERFACE, "up")


def _ip(*argv: str) -> str:
    done = subprocess.run(["ip", *argv], check=True, capture_output=True, text=True)
    return done.stdout
