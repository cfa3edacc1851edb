"""Files of data, read piece by piece while a job runs."""

from __future__ import annotations

import errno
import math
import os
import resource
import stat

import numpy as np

from megatron_grow.inputs.errors import UserError


class DataFile:
    """A file read with ``pread``, open as long as the object lives.

    A memory map would end the job by SIGBUS, without a word, where a file is cut under it; here
    that is a :class:`UserError`. What was checked at the start is what is read later, even if the
    path has since come to name another file.

    Args:
        path: Of a regular file.
        where: What names it, for messages.

    Raises:
        UserError: a file that is missing, of another kind, or cannot be opened.
    """

    def __init__(self, path: str, where: str) -> None:
        self._descriptor: int | None = None
        self.path, self.where = path, where
        try:
            self._descriptor = _open(path)
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise UserError(f"{where}: {path} cannot be opened: {_reason(error)}") from error
        state = os.fstat(self._descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise UserError(f"{where}: {path} is not a regular file")
        self.size = state.st_size
        """Bytes when it was opened."""

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def __reduce__(self) -> tuple[type[DataFile], tuple[str, str]]:
        return DataFile, (self.path, self.where)

    def read(self, size: int, offset: int) -> bytes | bytearray:
        """The ``size`` bytes that begin at byte ``offset``.

        Raises:
            UserError: the file ends before, or cannot be read.
        """
        data = self._pread(size, offset)
        if len(data) == size:
            return data
        whole = bytearray(data)
        while len(whole) < size:  # one call reads 2 GiB at most
            data = self._pread(size - len(whole), offset + len(whole))
            if not data:
                now = os.fstat(self._descriptor).st_size  # type: ignore[arg-type]
                raise UserError(
                    f"{self.where}: {self.path} has {now} bytes and had {self.size} when the job "
                    "opened it: it was cut or overwritten since; put it back"
                )
            whole += data
        return whole

    def _pread(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)  # type: ignore[arg-type]
        except OSError as error:
            raise UserError(
                f"{self.where}: {self.path} cannot be read at byte {offset}: {_reason(error)}"
            ) from error


class FileArray:
    """An array in a file.

    Args:
        file: Where it is.
        dtype: Of its values.
        shape: (rows,) or (rows, values of a row).
        offset: Bytes before it.
        ahead: Rows read at a time, if fewer are asked for: for rows read in order.
    """

    def __init__(
        self, file: DataFile, dtype: np.dtype, shape: tuple[int, ...], offset: int, ahead: int = 0
    ) -> None:
        self.file, self.dtype, self.shape, self.offset = file, dtype, shape, offset
        self._ahead = ahead
        self._buffer = 0, np.empty((0, *shape[1:]), dtype)
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self.nbytes = shape[0] * self._row_bytes
        """Its size."""

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``, (stop - start, ...), not to be written to.

        Raises:
            IndexError: there are fewer.
            UserError: as :meth:`DataFile.read`.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start} to {stop} of {self.shape[0]}")
        if not self._ahead:
            return self._read(start, stop)
        first, rows = self._buffer
        if start < first or stop > first + len(rows):
            rows = self._read(start, max(stop, min(start + self._ahead, self.shape[0])))
            first, self._buffer = start, (start, rows)
        return rows[start - first : stop - first]

    def _read(self, start: int, stop: int) -> np.ndarray:
        row = self._row_bytes
        data = self.file.read((stop - start) * row, self.offset + start * row)
        values = np.frombuffer(data, self.dtype)
        return values if len(self.shape) == 1 else values.reshape(-1, *self.shape[1:])


def _open(path: str) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # the last: a FIFO would wait for a writer
    try:
        return os.open(path, flags)
    except OSError as error:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if error.errno != errno.EMFILE or soft == hard:
            raise
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a blend of many corpora
        return os.open(path, flags)


def _reason(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"{reason} (ulimit -n)" if getattr(error, "errno", None) == errno.EMFILE else reason
