"""Reads and writes at places in a file, whole or with an error."""

from __future__ import annotations

import os


def read_at(descriptor: int, memory: memoryview, offset: int) -> bool:
    """Fill ``memory`` from ``offset`` on; False if the file ends before."""
    while memory:
        count = os.preadv(descriptor, [memory], offset)
        if count == 0:
            return False
        memory, offset = memory[count:], offset + count
    return True


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` from ``offset`` on."""
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
