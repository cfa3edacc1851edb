"""Cached arrays: whole or made again, whatever has become of their file."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from megatron_grow.data.cache import cached
from megatron_grow.inputs.errors import UserError

ARRAYS = {"a": np.arange(1000, dtype=np.int64).reshape(500, 2), "b": np.arange(7, dtype=np.int16)}


class Computation:
    """Makes the arrays, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return ARRAYS


def get(directory: Path, compute: Computation, **description: object) -> dict[str, list]:
    found = cached(directory, {"kind": "test"} | description, compute)
    return {name: array.read(0, len(array)).tolist() for name, array in found.items()}


EXPECTED = {name: array.tolist() for name, array in ARRAYS.items()}


def test_computed_once_for_each_description(tmp_path):
    compute = Computation()
    for _ in range(3):
        assert get(tmp_path / "new" / "cache", compute) == EXPECTED
    assert compute.calls == 1
    assert get(tmp_path / "new" / "cache", compute, seed=1) == EXPECTED
    assert compute.calls == 2


def test_damage_of_any_kind_is_found_and_mended(tmp_path):
    compute = Computation()
    get(tmp_path, compute)
    (path,) = tmp_path.iterdir()
    whole, chance = path.read_bytes(), random.Random(0)
    half = len(whole) // 2
    damaged = [
        b"",
        whole[:8],
        whole[:9],
        whole[:half],
        whole[:-1],
        whole + b"\0",
        bytes(len(whole)),
    ]
    damaged += [whole[:half] + bytes(len(whole) - half)]  # blocks that never reached the disk
    for _ in range(100):
        place = chance.randrange(len(whole))
        damaged.append(
            whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]
        )
    for number, content in enumerate(damaged, start=2):
        path.write_bytes(content)
        assert get(tmp_path, compute) == EXPECTED
        assert compute.calls == number
        assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_of_another_description(tmp_path):
    """Copied by hand, say."""
    compute = Computation()
    get(tmp_path, compute)
    (path,) = tmp_path.iterdir()
    get(tmp_path, compute, seed=1)
    (other,) = set(tmp_path.iterdir()) - {path}
    path.write_bytes(other.read_bytes())
    assert get(tmp_path, compute) == EXPECTED
    assert compute.calls == 3


def test_many_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: get(tmp_path, Computation()), range(32)))
    assert found == [EXPECTED] * 32
    assert len(list(tmp_path.iterdir())) == 1


def test_directory_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    message = r"^data\.cache_dir=.* cannot be written: (Not a directory|File exists)$"
    for name in ("file", "file/below"):
        with pytest.raises(UserError, match=message):
            get(tmp_path / name, Computation())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        get(tmp_path / "full", Computation())
    assert list((tmp_path / "full").iterdir()) == []


def test_a_directory_that_is_complete_need_not_be_writable(tmp_path, monkeypatch):
    get(tmp_path, Computation())

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert get(tmp_path, Computation()) == EXPECTED
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        get(tmp_path, Computation(), seed=1)
