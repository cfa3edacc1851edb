"""Compressed files, known by their first bytes whatever their names are."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zlib
from pathlib import Path
from typing import BinaryIO, cast

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

try:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
except ImportError:
    zstd = None
else:
    DAMAGE += (zstd.ZstdError,)


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
        return cast(BinaryIO, bz2.BZ2File(raw)), raw
    if magic.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        return cast(BinaryIO, lzma.LZMAFile(raw)), raw
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        if zstd is None:
            raw.close()
            raise UnreadableError("Zstandard: pip install backports.zstd to read it")
        # Corpora are packed with windows beyond the default limit (zstd --long).
        window = {zstd.DecompressionParameter.window_log_max: 31}
        return cast(BinaryIO, zstd.ZstdFile(raw, options=window)), raw
    return raw, raw
