"""Checksums of archives whose members were written in pieces."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

from isal.isal_zlib import crc32_combine

from megatron_grow.checkpoint.zips import checksum_offsets


def combine(pieces: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of pieces that follow one another, each given by its checksum and its length."""
    total = 0
    for checksum, length in pieces:
        total = crc32_combine(total, checksum, length)
    return total


def set_checksums(path: Path, checksums: dict[str, int]) -> None:
    """Write the checksums of some members, by name, into an archive of ``torch.save``."""
    with path.open("r+b") as file, zipfile.ZipFile(file) as archive:
        for member, offsets in checksum_offsets(file, archive).items():
            name = member.split("/", 1)[-1]
            for offset in offsets if name in checksums else ():
                file.seek(offset)
                file.write(struct.pack("<I", checksums[name]))
