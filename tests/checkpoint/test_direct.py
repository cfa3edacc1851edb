"""Writes past the page cache: the same bytes as any others, on any file system."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from pathlib import Path
from typing import Any

import pytest

from megatron_grow.checkpoint import direct
from megatron_grow.checkpoint.direct import DirectWriter

PAGE = 4096


def pieces(seed: int) -> list[tuple[int, bytes]]:
    """Neighbours of all sizes, from nothing to more than a buffer, with their places, shuffled."""
    chance, place, found = random.Random(seed), 0, []
    for size in (0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 100_000, 9 << 20, 5, 16 << 20, 77):
        found.append((place, chance.randbytes(size)))
        place += size
    chance.shuffle(found)
    return found


def written(path: Path, parts: list[tuple[int, bytes]]) -> bytes:
    """What is in ``path`` after two writers have written every other piece."""
    with DirectWriter() as one, DirectWriter() as other:
        for number, (place, data) in enumerate(parts):
            (one, other)[number % 2].write_at(path, data, place)
    return path.read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_pieces_at_any_places(seed: int, tmp_path: Path) -> None:
    parts = pieces(seed)
    assert written(tmp_path / "file", parts) == b"".join(data for _, data in sorted(parts))


def test_a_file_system_that_refuses_to_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any, flags: int, *more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return opened(path, flags, *more)

    opened = os.open
    monkeypatch.setattr(direct.os, "open", refuse)
    test_pieces_at_any_places(1, tmp_path)


def test_a_file_system_that_refuses_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = 0

    def refuse(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal refused
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return write(descriptor, data, offset)

    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", refuse)
    test_pieces_at_any_places(1, tmp_path)
    assert refused


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/file'"),
        DirectWriter() as file,
    ):
        file.write_at(tmp_path / "file", bytes(100_000), 0)


def test_nothing_stays_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    written(tmp_path / "file", pieces(0))
    (tmp_path / "sub").mkdir()
    test_a_full_disk_is_named(tmp_path / "sub")  # and after an error
    assert set(os.listdir("/proc/self/fd")) == before
