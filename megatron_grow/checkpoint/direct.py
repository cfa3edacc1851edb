"""Writes that leave the page cache alone."""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from megatron_grow.checkpoint.positional import write_at

_BUFFER_BYTES = 8 << 20
_PAGE = 4096
"""Direct writes begin and end with one, in the file and in memory."""
_DIRECT = getattr(os, "O_DIRECT", 0)


class DirectWriter:
    """Writes at places of some files, which are on disk when it is closed.

    What is converted is rarely read soon. Through the page cache, writing it costs the kernel as
    much as all the rest of a conversion, and drives out what others on the machine hold there. So
    whole pages are written past it, where the file system can. Several writers may write one file,
    each of them from one thread.
    """

    def __init__(self) -> None:
        """No file is open yet."""
        self._cached: dict[Path, int] = {}
        self._direct: dict[Path, int] = {}
        self._opened = ExitStack()
        self._memory = mmap.mmap(-1, _BUFFER_BYTES)  # begins with a page
        self._buffer = np.frombuffer(self._memory, np.uint8)

    def write_at(self, path: Path, data: bytes | memoryview, offset: int) -> None:
        """Write ``data`` from ``offset`` on; a file that is not there is made.

        Raises:
            OSError: with the path; the disk is full, for example.
        """
        data = memoryview(data)
        try:
            self._open(path)
            first, last = -offset % _PAGE, len(data) - (offset + len(data)) % _PAGE
            if path not in self._direct or last - first < _PAGE:
                first = last = len(data)
            write_at(self._cached[path], data[:first], offset)
            for start in range(first, last, _BUFFER_BYTES):
                stop = min(start + _BUFFER_BYTES, last)
                self._write_pages(path, data[start:stop], offset + start)
            write_at(self._cached[path], data[last:], offset + last)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None

    def __enter__(self) -> DirectWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        """Close the files; unless an error ends it, all is on disk before."""
        with self._opened:
            if kind is None:
                for descriptor in self._cached.values():
                    os.fsync(descriptor)

    def _open(self, path: Path) -> None:
        if path in self._cached:
            return
        self._cached[path] = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        self._opened.callback(os.close, self._cached[path])
        if not _DIRECT:
            return
        try:
            self._direct[path] = os.open(path, os.O_WRONLY | _DIRECT)
            self._opened.callback(os.close, self._direct[path])
        except OSError as error:
            if error.errno != errno.EINVAL:  # not on this file system
                raise

    def _write_pages(self, path: Path, data: memoryview, offset: int) -> None:
        if path in self._direct:
            # numpy lets other threads run meanwhile; a memoryview would not.
            self._buffer[: len(data)] = np.frombuffer(data, np.uint8)
            try:
                write_at(self._direct[path], memoryview(self._memory)[: len(data)], offset)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:  # it asks for more than whole pages
                    raise
                del self._direct[path]
        write_at(self._cached[path], data, offset)
