"""Arrays computed once, kept in a directory and never trusted unseen."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from megatron_grow.data.files import DataFile, FileArray
from megatron_grow.files.durable import write_whole
from megatron_grow.inputs.errors import UserError

Arrays = Mapping[str, np.ndarray]
_BLOCK = 1 << 24
"""Bytes that are summed at a time."""
_AHEAD = 256
"""Rows that are read at a time: most readers go through them in order."""


def cached(
    directory: Path, description: Mapping[str, Any], compute: Callable[[], Arrays]
) -> dict[str, FileArray]:
    """The arrays of ``description``, out of ``directory`` if it holds them whole.

    A file has a line of JSON (the arrays' types and shapes, the description), the arrays, and
    before both a CRC-32 of all that follows. A file that does not fit its CRC is made again. It
    appears under its name when it is whole and on disk, and equal descriptions give equal bytes:
    so any number of processes may do this at once.

    Args:
        directory: Made if needed.
        description: What the arrays depend on, all of it; JSON.
        compute: Makes them.

    Raises:
        UserError: the directory lacks the arrays and cannot be written.
    """
    text = json.dumps(description, sort_keys=True)
    path = directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.index"
    found = _load(path, text)
    if found is None:
        arrays = compute()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _write(path, text, arrays)
        except OSError as error:
            raise UserError(
                f"data.cache_dir={directory} (by default run.output_dir/cache) cannot be written: "
                f"{error.strerror}"
            ) from error
        found = _load(path, text)
    if found is None:
        raise UserError(
            f"data.cache_dir={directory}: {path.name} does not hold what was just written to it; "
            "name a directory on another file system"
        )
    return found


def _write(path: Path, description: str, arrays: Arrays) -> None:
    header = {
        "description": description,
        "arrays": {name: [a.dtype.str, a.shape] for name, a in arrays.items()},
    }
    parts: list[Any] = [json.dumps(header).encode() + b"\n"]
    parts += [a.reshape(-1).view(np.uint8).data for a in arrays.values()]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    write_whole(path, [b"%08x\n" % crc, *parts], attempt=uuid4().hex)


def _load(path: Path, description: str) -> dict[str, FileArray] | None:
    """The arrays in ``path``; None where it is missing, damaged or of another description."""
    if not path.exists():
        return None
    file = DataFile(str(path), "data.cache_dir")
    crc = 0
    for start in range(9, file.size, _BLOCK):
        block = file.read(min(_BLOCK, file.size - start), start)
        if start == 9:
            line = bytes(block.partition(b"\n")[0])
        crc = zlib.crc32(block, crc)
    if file.size <= 9 or file.read(9, 0) != b"%08x\n" % crc:
        return None
    header = json.loads(line)
    if header["description"] != description:
        return None
    arrays, offset = {}, 9 + len(line) + 1
    for name, (dtype, shape) in header["arrays"].items():
        arrays[name] = FileArray(file, np.dtype(dtype), tuple(shape), offset, ahead=_AHEAD)
        offset += arrays[name].nbytes
    return arrays
