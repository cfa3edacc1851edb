"""Reading a file that others may cut or replace meanwhile."""

from __future__ import annotations

import errno
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest

from megatron_grow.data.files import DataFile, FileArray
from megatron_grow.inputs.errors import UserError


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    """0 to 99 in two bytes each, after a header of three."""
    path = tmp_path / "numbers"
    path.write_bytes(b"abc" + np.arange(100, dtype=np.uint16).tobytes())
    return str(path)


@pytest.mark.parametrize("ahead", [0, 1, 7, 1000])
def test_rows_in_any_order(numbers, ahead):
    file = DataFile(numbers, "field")
    assert (file.size, file.read(3, 0)) == (203, b"abc")
    array = FileArray(file, np.dtype(np.uint16), (50, 2), 3, ahead=ahead)
    assert (len(array), array.nbytes) == (50, 200)
    for start, stop in [(0, 1), (1, 2), (48, 50), (3, 30), (3, 3), (50, 50), (0, 50), (2, 3)]:
        expected = [[2 * row, 2 * row + 1] for row in range(start, stop)]
        assert array.read(start, stop).tolist() == expected
    for start, stop in [(-1, 1), (49, 51), (3, 2)]:
        with pytest.raises(IndexError):
            array.read(start, stop)


def test_a_file_cut_while_it_is_open(numbers):
    """A memory map would end the process by SIGBUS."""
    array = FileArray(DataFile(numbers, "data.field"), np.dtype(np.uint16), (100,), 3)
    os.truncate(numbers, 103)
    assert array.read(40, 50).tolist() == list(range(40, 50))
    for start, stop in [(40, 51), (60, 70)]:
        with pytest.raises(
            UserError, match=r"data\.field: .*numbers has 103 bytes and had 203 when"
        ):
            array.read(start, stop)


def test_a_file_replaced_while_it_is_open(numbers, tmp_path):
    array = FileArray(DataFile(numbers, "field"), np.dtype(np.uint16), (100,), 3)
    (tmp_path / "other").write_bytes(bytes(203))
    os.replace(tmp_path / "other", numbers)
    assert array.read(0, 100).tolist() == list(range(100))


def test_a_disk_that_fails(numbers, monkeypatch):
    def fail(*arguments: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    file = DataFile(numbers, "field")
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(UserError, match="cannot be read at byte 5: Input/output error"):
        file.read(1, 5)


def test_reads_that_come_in_pieces(numbers, monkeypatch):
    """Linux reads 2 GiB at most in one call."""
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: whole(fd, min(size, 7), offset))
    array = FileArray(DataFile(numbers, "field"), np.dtype(np.uint16), (100,), 3)
    assert array.read(0, 100).tolist() == list(range(100))


def test_more_files_than_the_soft_limit(numbers):
    """A blend of hundreds of corpora."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = len(os.listdir("/proc/self/fd")) + 5
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    try:
        files = [DataFile(numbers, "field") for _ in range(20)]
        assert [file.read(1, 0) for file in files] == [b"a"] * 20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_descriptors_are_closed_and_copies_open_their_own(numbers):
    before = len(os.listdir("/proc/self/fd"))
    file = DataFile(numbers, "field")
    copy = pickle.loads(pickle.dumps(file))
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del file
    assert copy.read(2, 1) == b"bc"
    del copy
    assert len(os.listdir("/proc/self/fd")) == before
