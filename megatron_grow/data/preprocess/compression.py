"""Compressed files, known by their first bytes whatever their names are."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

SUFFIXES = {".gz", ".bz2", ".xz", ".lzma", ".zst"}


class UnreadableError(Exception):
    """A file that holds nothing to train on, or nothing that can be read; says of which kind."""


class DamagedError(Exception):
    """A file that breaks off or holds what its format forbids."""


DAMAGE: tuple[type[Exception], ...] = (
    DamagedError,
    EOFError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
)
"""What reading a damaged or truncated file raises, besides OSError."""


def _zstandard() -> Any:
    """Python's own module, or its backport; None where it is not installed."""
    try:
        return import_module(
            "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
        )
    except ImportError:
        return None


zstd = _zstandard()
if zstd is not None:
    DAMAGE += (zstd.ZstdError,)


class _Streams(io.RawIOBase):
    """Compressed streams, one behind the other.

    Python's ``BZ2File`` and ``LZMAFile`` take all that follows a stream for its end, if the next
    one is damaged.
    """

    def __init__(self, file: BinaryIO, decompressor: Callable[[], Any]) -> None:
        self._file, self._new = file, decompressor
        self._decompressor, self._position = decompressor(), 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As any raw stream's; raises what the decompressor does, and EOFError."""
        data = b""
        while not data:
            compressed = b""
            if self._decompressor.eof:
                compressed = self._behind()
                if not compressed:
                    return 0
                self._decompressor = self._new()
            elif self._decompressor.needs_input:
                compressed = self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not compressed:
                    raise EOFError("it ends in the middle of a stream")
            data = self._decompressor.decompress(compressed, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seekable(self) -> bool:
        """Yes, at the price of reading."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As any raw stream's, but from the end."""
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence != io.SEEK_SET:
            raise io.UnsupportedOperation("nobody knows where it ends")
        if offset < self._position:
            self._file.seek(0)
            self._decompressor, self._position = self._new(), 0
        while self._position < offset and self.read(min(offset - self._position, 1 << 20)):
            pass
        return self._position

    def _behind(self) -> bytes:
        """How the next stream begins; empty at the end of the file."""
        rest = self._decompressor.unused_data or self._file.read(io.DEFAULT_BUFFER_SIZE)
        while rest and not rest.strip(b"\0"):  # with which .xz files may be padded
            rest = self._file.read(io.DEFAULT_BUFFER_SIZE)
        return rest.lstrip(b"\0")


def _streams(file: BinaryIO, decompressor: Callable[[], Any]) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Streams(file, decompressor), 1 << 16))


def open_stream(path: Path) -> tuple[BinaryIO, BinaryIO]:
    """Open a file to read what is in it, decompressed.

    Returns:
        The stream, and the file itself, which is to be closed; its position tells how much of it
        has been read.

    Raises:
        UnreadableError: a compression whose library is not installed.
        OSError: a file that cannot be opened.
    """
    raw = path.open("rb")
    magic = raw.read(6)
    raw.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw)), raw
    if magic.startswith(b"BZh"):
        return _streams(raw, bz2.BZ2Decompressor), raw
    if magic.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        return _streams(raw, lzma.LZMADecompressor), raw
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        if zstd is None:
            raw.close()
            raise UnreadableError("Zstandard: pip install backports.zstd to read it")
        # Corpora are packed with windows beyond the default limit (zstd --long).
        window = {zstd.DecompressionParameter.window_log_max: 31}
        return cast(BinaryIO, zstd.ZstdFile(raw, options=window)), raw
    return raw, raw
