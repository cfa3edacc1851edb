"""Two hosts on one machine: network namespaces with their own addresses, and a cable."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from types import TracebackType

INTERFACE = "cable"
"""At both ends."""
_NETWORK, _HOST_NAME, _MOUNTS = 0x40000000, 0x04000000, 0x00020000
"""CLONE_NEWNET, CLONE_NEWUTS and CLONE_NEWNS."""
_NUMBERS = itertools.count()


def why_not() -> str | None:
    """What is missing here for :class:`TwoHosts`; None where nothing is."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "network namespaces need Linux, with ip (iproute2)"
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

    def enter(self, host: int) -> None:
        """Move this process, which must have no threads yet, to a host that knows both names."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self._names[host]}") as namespace:
            done = libc.setns(namespace.fileno(), _NETWORK) or libc.unshare(_HOST_NAME | _MOUNTS)
        assert done == 0, os.strerror(ctypes.get_errno())
        socket.sethostname(f"host{host}")
        with tempfile.NamedTemporaryFile("w") as hosts:
            hosts.write("127.0.0.1 localhost\n")
            hosts.writelines(f"{address} host{n}\n" for n, address in enumerate(self.addresses))
            hosts.flush()
            _run("mount", "--make-rprivate", "/")
            _run("mount", "--bind", hosts.name, "/etc/hosts")
        os.environ.update(MASTER_ADDR=self.addresses[0], GLOO_SOCKET_IFNAME=INTERFACE)

    def cut(self) -> None:
        """Pull the cable out of ``host1``."""
        _ip("-n", self._names[1], "link", "set", INTERFACE, "down")

    def mend(self) -> None:
        """Put it in again."""
        _ip("-n", self._names[1], "link", "set", INTERFACE, "up")


def _ip(*argv: str) -> str:
    return _run("ip", *argv)


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
