"""A lock among the processes that share a file system which has locks."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from megatron_grow.inputs.errors import UserError


@contextmanager
def locked(path: Path, taken: str, *, needed: bool = True) -> Iterator[None]:
    """Hold the lock ``path``, a file, which ends with the process, however that ends.

    Args:
        path: is made, and removed in the end.
        taken: what is said if another process holds it.
        needed: refuse a file system that has no locks; else go on without one.

    Raises:
        UserError: it is taken, or cannot be had.
        OSError: the file cannot be made.
    """
    file = _take(path, taken, needed)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _take(path: Path, taken: str, needed: bool) -> IO:
    while True:
        # For writing: NFS gives no exclusive lock on what was opened for reading.
        file = path.open("a")
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass  # whoever held it has just removed it
        except OSError as error:
            if not needed and not isinstance(error, BlockingIOError):
                return file
            file.close()
            reason = f"{path} cannot be locked: {error.strerror}"
            raise UserError(taken if isinstance(error, BlockingIOError) else reason) from None
        file.close()
