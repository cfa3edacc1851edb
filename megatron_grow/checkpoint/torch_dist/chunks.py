"""One stored tensor, as ``torch.save`` writes it, somewhere in a file."""

from __future__ import annotations

import io
import os
import pickle
import struct
import threading
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from isal.isal_zlib import crc32  # several times faster than zlib's

from megatron_grow.checkpoint.pickles import TENSOR, Restricted, StoredTensor
from megatron_grow.checkpoint.positional import read_at
from megatron_grow.checkpoint.zips import checksum_offsets, data_offset
from megatron_grow.state.memory import empty

FOREIGN = "is not what was saved here, but perhaps of another checkpoint"


class DamagedError(Exception):
    """Bytes that are not what was written."""


_SEAL_BYTES = 512
"""At the end of an archive: its directory, with the checksum of every member."""


def seal(descriptor: int, offset: int, length: int) -> int:
    """What tells the tensor in ``length`` bytes from any other, without reading its values.

    It is the CRC-32 of the end of its archive, where the checksum of the values stands.
    """
    count = min(length, _SEAL_BYTES)
    return crc32(os.pread(descriptor, count, offset + length - count))


def seal_of(values: memoryview, after: bytes) -> int:
    """The same for a tensor whose values, and what follows them, are in memory."""
    return crc32((bytes(values[-_SEAL_BYTES:]) + after)[-_SEAL_BYTES:])


def read_tensor(
    path: Path, offset: int, length: int, *, sealed: int | None = None, once: bool = False
) -> torch.Tensor:
    """The tensor in ``length`` bytes of a file from ``offset`` on.

    Nothing that the bytes say is ever run, and all checksums are compared (torch itself reads past
    a wrong one). Values go straight from the file into the tensor.

    Args:
        path: of the file.
        offset: where the tensor's archive begins.
        length: of the archive.
        sealed: its :func:`seal` when it was written, if that is known.
        once: whether the values are read only once, so that the page cache forgets them.

    Raises:
        DamagedError: not a tensor, or damaged.
        OSError: the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if sealed is not None and seal(descriptor, offset, length) != sealed:
            raise DamagedError(f"it {FOREIGN}")
        window = io.BufferedReader(_Window(descriptor, offset, length))
        with zipfile.ZipFile(window) as archive:
            members = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
            if members.keys() >= {"byteorder"} and archive.read(members["byteorder"]) != b"little":
                raise DamagedError("its bytes are in big-endian order")
            told = Restricted(io.BytesIO(archive.read(members["data.pkl"])), TENSOR).load()
            if not isinstance(told, StoredTensor):
                raise DamagedError("it holds something else than a tensor")
            member = members[f"data/{told.member}"]
            values = _values(descriptor, offset + data_offset(window, member), member)
        return _shaped(values.view(told.dtype), told)
    except (DamagedError, OSError):
        raise
    except pickle.UnpicklingError as error:
        raise DamagedError(f"it holds something else than a tensor: {error}") from None
    except Exception as error:  # damaged bytes can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedError(reason) from None
    finally:
        if once and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def stored_tensor(values: torch.Tensor) -> tuple[bytes, memoryview, bytes]:
    """What ``torch.save`` makes of a contiguous tensor that has its memory to itself.

    Only the identifier that torch derives from the content differs: torch itself takes three times
    as long, most of it for the checksum.

    Returns:
        What stands before the values; these, not copied; and what stands after them.
    """
    memory = memoryview(values.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    before, after = _around(tuple(values.shape), values.dtype).with_checksum(crc32(memory))
    return before, memory, after


@dataclass(frozen=True)
class _Around:
    """What stands before and after a tensor's values, and where their checksum belongs."""

    before: bytes
    after: bytes
    in_before: tuple[int, ...]
    in_after: tuple[int, ...]

    def with_checksum(self, checksum: int) -> tuple[bytes, bytes]:
        parts = bytearray(self.before), bytearray(self.after)
        for part, places in zip(parts, (self.in_before, self.in_after), strict=True):
            for place in places:
                part[place : place + 4] = struct.pack("<I", checksum)
        return bytes(parts[0]), bytes(parts[1])


_ONE_AT_A_TIME = threading.Lock()
"""Whether torch skips values is one setting for all threads."""


@lru_cache(maxsize=256)
def _around(shape: tuple[int, ...], dtype: torch.dtype) -> _Around:
    """What torch writes around the values of any tensor of ``shape``."""
    buffer = io.BytesIO()
    with _ONE_AT_A_TIME, torch.serialization.skip_data():
        torch.save(torch.empty(shape, dtype=dtype), buffer)
    with zipfile.ZipFile(buffer) as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith("/data/0"))
        offsets = checksum_offsets(buffer, archive)[member.filename]
    start = data_offset(buffer, member)
    stop, raw = start + member.file_size, buffer.getvalue()
    in_before = tuple(offset for offset in offsets if offset < start)
    in_after = tuple(offset - stop for offset in offsets if offset >= stop)
    return _Around(raw[:start], raw[stop:], in_before, in_after)


def _values(descriptor: int, start: int, member: zipfile.ZipInfo) -> torch.Tensor:
    """The bytes of an archive's member that is stored as it is, from ``start`` of the file on."""
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise DamagedError("its values are compressed")
    values = empty((member.file_size,), torch.uint8)
    memory = memoryview(values.numpy())  # type: ignore[arg-type]
    if not read_at(descriptor, memory, start):
        raise DamagedError("its file ends before it")
    if crc32(memory) != member.CRC:
        raise DamagedError("its checksum is wrong")
    return values


def _shaped(values: torch.Tensor, told: StoredTensor) -> torch.Tensor:
    if not told.row_major:
        raise DamagedError("its values are not in row-major order")
    count = prod(told.shape)
    if not 0 <= told.first <= told.first + count <= len(values):
        raise DamagedError("it is larger than its values")
    return values[told.first : told.first + count].view(told.shape)


class _Window(io.RawIOBase):
    """A range of a file, as a file."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor, self._offset, self._length, self._at = descriptor, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        memory = memoryview(buffer)[: max(0, self._length - self._at)]
        count = os.preadv(self._descriptor, [memory], self._offset + self._at) if memory else 0
        self._at += count
        return count
