"""Checksums of archives whose members were written in pieces."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

from megatron_grow.checkpoint.zips import checksum_offsets

_POLYNOMIAL = 0xEDB88320
"""Of CRC-32; the highest bit is the coefficient of x^0."""
_ONE = 1 << 31


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
    with path.open("r+b") as file, zipfile.ZipFile(file) as archive:
        for member, offsets in checksum_offsets(file, archive).items():
            name = member.split("/", 1)[-1]
            for offset in offsets if name in checksums else ():
                file.seek(offset)
                file.write(struct.pack("<I", checksums[name]))
