"""Where things are in the zip archives that ``torch.save`` writes."""

from __future__ import annotations

import struct
import zipfile
from io import BufferedIOBase

_LOCAL = struct.Struct("<26xHH")
"""Before a member's data; gives the lengths of its name and extra field, which follow."""
_CENTRAL = struct.Struct("<28xHHH12x")
"""Of a member, in the directory at the end; gives those of name, extra field and comment."""
_HAS_DESCRIPTOR = 0x08
"""Flag of a member whose checksum stands behind its data."""


def data_offset(file: BufferedIOBase, member: zipfile.ZipInfo) -> int:
    """Where the data of ``member`` begin in the archive ``file``."""
    file.seek(member.header_offset)
    lengths = _LOCAL.unpack(file.read(_LOCAL.size))
    return member.header_offset + _LOCAL.size + sum(lengths)


def checksum_offsets(file: BufferedIOBase, archive: zipfile.ZipFile) -> dict[str, tuple[int, int]]:
    """By the name of each member, the two places in ``file`` at which its checksum is stored."""
    found, entry = {}, archive.start_dir
    for member in archive.infolist():
        if member.flag_bits & _HAS_DESCRIPTOR:  # its mark, then the checksum
            first = data_offset(file, member) + member.file_size + 4
        else:
            first = member.header_offset + 14
        found[member.filename] = first, entry + 16
        file.seek(entry)
        entry += _CENTRAL.size + sum(_CENTRAL.unpack(file.read(_CENTRAL.size)))
    return found
