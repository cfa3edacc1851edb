"""Files that are read whole, if they are files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from megatron_grow.inputs.errors import UserError

_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


def read_regular(path: Path) -> bytes:
    """The content of ``path``; reading anything but a file could wait for ever.

    Raises:
        FileNotFoundError: it does not exist.
        UserError: it is no file, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb", closefd=True) as file:
            check_regular(path, os.fstat(descriptor))
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        check_regular(path, os.stat(path))
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def check_regular(path: Path, found: os.stat_result) -> None:
    """Raise :class:`UserError` if ``path``, of which this is known, is no file."""
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "a device")
        raise UserError(f"{path} is {kind}, not a file")
