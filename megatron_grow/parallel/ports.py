"""A port at which the ranks of a job on this machine can meet."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def free_port() -> Iterator[int]:
    """One that the system gives to nobody for the time of a block; rank 0 may listen there.

    Between finding a free port and listening there it could be given away. It is not while a socket
    is bound to it; with ``SO_REUSEADDR``, which torch's store sets too, another may listen.
    """
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]
