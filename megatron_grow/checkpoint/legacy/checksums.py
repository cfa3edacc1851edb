"""Checksums of archives whose members were written in pieces."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

from megatron_grow.checkpoint.archive import data_offset

_POLYNOMIAL = 0xEDB88320
"""Of CRC-32; the highest bit is the coefficient of x^0."""
_ONE = 1 << 31

_DESCRIPTOR = b"PK\x07\x08"
_ENTRY = struct.Struct("<4s12xI8xHHH12x")
"""Of a central directory: its mark, a checksum, and the lengths of what follows the entry."""


def _times(a: int, b: int) -> int:
    """The product of two polynomials, modulo that of the checksum."""
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
        bit >>= 1
    return product


_POWERS = [1 << 30]
"""x to the power of 2 to the power of the index."""
for _ in range(66):
    _POWERS.append(_times(_POWERS[-1], _POWERS[-1]))


def combine(pieces: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of pieces that follow one another, each given by its checksum and its length.

    With A of a bytes before B: crc(AB) = crc(A) x^(8b) + crc(B), as zlib's crc32_combine has it.
    """
    total = 0
    for checksum, length in pieces:
        for index in range(length.bit_length()):
            if length >> index & 1:
                total = _times(_POWERS[index + 3], total)
        total ^= checksum
    return total


def set_checksums(path: Path, checksums: dict[str, int]) -> None:
    """Write the checksums of some members, by name, into an archive of ``torch.save``."""
    with path.open("r+b") as file:
        with zipfile.ZipFile(file) as archive:
            members, start = archive.infolist(), archive.start_dir
        found = {}
        for member in members:
            name = member.filename.split("/", 1)[-1]
            if name in checksums:
                found[member.filename.encode()] = checksum = checksums[name]
                # torch puts it behind the data.
                file.seek(data_offset(file, member) + member.file_size)
                if file.read(4) != _DESCRIPTOR:
                    raise ValueError(f"{path}: {member.filename} has no data descriptor")
                file.write(struct.pack("<I", checksum))
        for _ in members:
            file.seek(start)
            _, _, *lengths = _ENTRY.unpack(file.read(_ENTRY.size))
            name_bytes = file.read(lengths[0])
            if name_bytes in found:
                file.seek(start + 16)
                file.write(struct.pack("<I", found[name_bytes]))
            start += _ENTRY.size + sum(lengths)
