"""How far a corpus has been made, so that the making can go on after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from blake3 import blake3

from megatron_grow.data.preprocess.corpora import Position
from megatron_grow.data.preprocess.encode import EncodedBatch
from megatron_grow.data.preprocess.findings import Findings, Met
from megatron_grow.data.preprocess.inputs import InputFile
from megatron_grow.files.durable import flush, sync
from megatron_grow.files.lock import locked
from megatron_grow.inputs.errors import UserError


@dataclass(frozen=True)
class Made:
    """What has been read of the input, and written of the output."""

    position: Position = field(default_factory=Position)
    disk_bytes: int = 0
    """Bytes of the input, as they lie on disk."""
    findings: Findings = field(default_factory=Findings)
    sizes: dict[str, list[int]] = field(default_factory=dict)
    """Bytes in the files of each split's writer."""
    written: dict[str, list[int]] = field(default_factory=dict)
    """Documents and tokens of each split once all files are whole, and only to be moved."""

    def after(self, batch: EncodedBatch, sizes: dict[str, list[int]]) -> Made:
        """The same once ``batch`` has been written."""
        findings = Findings()
        findings.add(self.findings)
        findings.add(batch.findings)
        return Made(batch.end, self.disk_bytes + batch.disk_bytes, findings, sizes)


def _made(mark: dict[str, Any]) -> Made:
    findings = mark["findings"]
    for name in ("dropped", "unknown"):
        findings[name] = Met(**findings[name])
    return Made(
        Position(**mark["position"]),
        mark["disk_bytes"],
        Findings(**findings),
        mark["sizes"],
        mark["written"],
    )


def header(settings: dict[str, Any], files: Sequence[InputFile]) -> dict[str, Any]:
    """What a corpus is made out of, and how."""
    return {
        "settings": settings,
        "files": [[str(file.path), file.size, file.modified] for file in files],
    }


def origin(settings: dict[str, Any], files: Sequence[InputFile]) -> str:
    """A digest of the same: 16 hex digits."""
    text = json.dumps(header(settings, files), sort_keys=True)
    return blake3(text.encode()).hexdigest()[:16]


class Journal:
    """A file of JSON lines: what is made out of which files, then marks of the progress.

    Args:
        path: The file, in the staging directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marked = False
        """Whether there is something to go on from."""

    def begin(
        self,
        settings: dict[str, Any],
        files: Sequence[InputFile],
        needs_all: bool = False,
        start_over: bool = False,
    ) -> Made:
        """Go on where an interrupted run stopped, as far as its input is unchanged.

        Args:
            settings: What the output depends on, besides the input.
            files: The input.
            needs_all: What was written depends on all of the input.
            start_over: Where the settings differ, begin anew.

        Raises:
            UserError: the interrupted run had other settings.
        """
        here = header(settings, files)
        kept: list[Made] = []
        lines = self._read()
        old = lines[0] if lines else here
        other = {name: value for name, value in old["settings"].items() if settings[name] != value}
        if other and lines[1:] and not start_over:
            found = ", ".join(f"{name}={value}" for name, value in other.items())
            raise UserError(
                f"{self.path.parent} holds an interrupted run with {found}; "
                "give the same settings to go on, or --overwrite to start over"
            )
        if not other:
            same = [a == b for a, b in zip_longest(old["files"], here["files"])]
            unchanged = Position(same.index(False) if False in same else len(same))
            if all(same) or not needs_all:
                marks = [made for made in map(_made, lines[1:]) if made.position <= unchanged]
                kept = [made for made in marks if all(same) or not made.written]
        new = self.path.with_suffix(".new")
        text = "".join(json.dumps(line) + "\n" for line in (here, *map(asdict, kept)))
        new.write_text(text, encoding="utf-8")
        os.replace(new, self.path)
        self.marked = bool(kept)
        return kept[-1] if kept else Made()

    def mark(self, made: Made, files: Sequence[Path] = ()) -> None:
        """Write down ``made``: all that it counts is on the disk, or in ``files``."""
        for path in files:
            sync(path)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(made)) + "\n")
            flush(file)
        self.marked = True

    def _read(self) -> list[dict[str, Any]]:
        """The lines, as far as they are whole."""
        lines = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else []:
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        return lines


@contextmanager
def claimed(staging: Path) -> Iterator[None]:
    """Make a directory, and keep other processes from writing in it.

    Raises:
        UserError: another one does.
    """
    staging.mkdir(parents=True, exist_ok=True)
    taken = f"{staging} is in use: another process makes this corpus"
    with locked(staging / "lock", taken, needed=False):
        yield
