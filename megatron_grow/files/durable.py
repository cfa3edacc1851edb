"""Files that are on the disk before anything relies on them, and whole or as they were."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO


def sync(*paths: Path) -> None:
    """Bring files, and the names in directories, to the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush(file: IO) -> None:
    """Bring what was written to an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_whole(path: Path, data: Iterable[bytes | memoryview], attempt: str = "") -> None:
    """Make ``path`` hold ``data``, or leave it as it was.

    Args:
        path: the file.
        data: what it will hold, in pieces.
        attempt: tells this writer from others that write the same file at the same time.

    Raises:
        OSError: the disk is full, or fails.
    """
    partial = path.with_name(f"{path.name}{attempt and f'.{attempt}'}.partial")
    try:
        with partial.open("wb") as file:
            for piece in data:
                file.write(piece)
            flush(file)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
