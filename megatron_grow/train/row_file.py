"""The file ``metrics.jsonl``: appended to, and put back to where a run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from megatron_grow.files.durable import flush, write_whole
from megatron_grow.train.rows import key_of, read_rows


class RowFile:
    """Appends lines to a file; those that a full disk refuses wait until there is room."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        """Open ``path`` to append to it; ``warn`` is told when it is refused, and when no more."""
        self._path, self._warn = path, warn
        self._file = path.open("ab", buffering=0)
        self._waiting: list[bytes] = []

    def append(self, line: bytes) -> None:
        """Write ``line``, after those that wait."""
        refused = bool(self._waiting)
        self._waiting.append(line)
        try:
            while self._waiting:
                self._write(self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            if not refused:
                self._warn(
                    f"{self._path} cannot be written: {error.strerror}; the run goes on, and its "
                    "rows wait for room"
                )
        else:
            if refused:
                self._warn(f"{self._path} is written again, and complete")

    def close(self) -> None:
        """Close it; what still waits is lost, and said."""
        if self._waiting:
            self._warn(f"{self._path} lacks the last {len(self._waiting)} rows of the run")
        self._file.close()

    def _write(self, line: bytes) -> None:
        """All of ``line`` or nothing: half a row would make the file unreadable."""
        end, done = self._file.seek(0, os.SEEK_END), 0
        try:
            while done < len(line):
                done += self._file.write(line[done:])
        except OSError:
            self._file.truncate(end)
            raise


def rewind(
    path: Path, step: int, stage: int | None
) -> tuple[set[tuple[int, str, int]], set[tuple[int, int]]]:
    """Move the rows after ``step`` of ``stage`` aside.

    Returns:
        Which rows ``step`` itself has, and which evaluations.
    """
    if not path.exists():
        return set(), set()
    kept: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    for row in read_rows(path):
        later = row["step"] > step or (stage is not None and row.get("stage", 0) > stage)
        (dropped if later else kept).append(row)
    if dropped:
        with path.with_name(path.name + ".dropped").open("ab") as file:
            file.write(_lines(dropped))
            flush(file)
    write_whole(path, [_lines(kept)])
    last = [row for row in kept if row["step"] == step]
    measured = [row for row in last if "val_loss" in row or row.get("val_loss_after") is not None]
    return {key_of(row) for row in last}, {(step, row.get("stage", 0)) for row in measured}


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def keep_previous(path: Path) -> None:
    """Rename a log that is there to the first name that is free."""
    if not path.exists():
        return
    kept = path.with_name(path.name + ".previous")
    for number in count(2):
        if not kept.exists():
            break
        kept = path.with_name(f"{path.name}.previous.{number}")
    path.rename(kept)
