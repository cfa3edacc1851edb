"""Files that are whole, or as they were."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from megatron_grow.files.durable import sync, write_whole


def test_pieces_in_order(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_whole(path, [b"ab", memoryview(b"cd"), b""])
    assert path.read_bytes() == b"abcd"
    write_whole(path, [b"e"])
    assert path.read_bytes() == b"e"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, list[str]]] = []

    def fsync(descriptor: int) -> None:
        names = sorted(path.name for path in tmp_path.iterdir())
        seen.append((Path(f"/proc/self/fd/{descriptor}").read_bytes(), names))

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "f", [b"new"])
    write_whole(tmp_path / "g", [b"new"], attempt="mine")
    assert seen == [(b"new", ["f.partial"]), (b"new", ["f", "g.mine.partial"])]


def test_a_failed_write_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, [b"new"])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_and_directories_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").touch()
    synced: list[bool] = []

    def fsync(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))

    monkeypatch.setattr(os, "fsync", fsync)
    sync(tmp_path / "f", tmp_path)
    assert synced == [False, True]
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "nothing")
