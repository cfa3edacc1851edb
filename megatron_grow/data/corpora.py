"""Raw corpora: files of text or JSON lines, read as a stream of documents."""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from megatron_grow.config.errors import UserError

DEFAULT_GLOBS = ("*.txt", "*.md", "*.py", "*.jsonl", "*.jsonl.gz", "*.jsonl.xz")
_DECOMPRESSORS: dict[str, Callable[[BinaryIO], gzip.GzipFile | lzma.LZMAFile]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".xz": lzma.LZMAFile,
}
_JSON_LINES = {".jsonl", ".json", ".ndjson"}


@dataclass(frozen=True)
class Record:
    """A document as it lies in a file, not yet decoded."""

    path: Path
    line: int | None
    """Line number from 1 in a file of JSON lines; absent where the whole file is the document."""
    data: bytes

    def __str__(self) -> str:
        return str(self.path) if self.line is None else f"{self.path}, line {self.line}"

    def text(self, json_key: str) -> str:
        """The document's text.

        Raises:
            UserError: not UTF-8, not a JSON object, or no text under ``json_key``.
        """
        return self._decode() if self.line is None else self._parse(json_key)

    def _decode(self) -> str:
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{self}: not UTF-8 at byte {error.start}: {error.reason}") from error

    def _parse(self, json_key: str) -> str:
        try:
            value = json.loads(self._decode())
        except json.JSONDecodeError as error:
            raise UserError(
                f"{self}: not JSON: {error.msg} at character {error.pos + 1}"
            ) from error
        if not isinstance(value, dict):
            raise UserError(f"{self}: a JSON object is expected, not {type(value).__name__}")
        if json_key not in value:
            raise UserError(f"{self}: no key {json_key!r}; its keys are {', '.join(value)}")
        text = value[json_key]
        if not isinstance(text, str):
            found = type(text).__name__
            raise UserError(f"{self}: the value of {json_key!r} must be a string, not {found}")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair
            raise UserError(f"{self}: the text is not valid Unicode: {error.reason}") from error
        return text


@dataclass
class Chunk:
    """Some consecutive records: what a worker is given at a time."""

    records: list[Record] = field(default_factory=list)
    text_bytes: int = 0
    """Size of the records."""
    disk_bytes: int = 0
    """What was read from disk for them, for the progress bar."""


def find_files(
    inputs: Sequence[str], globs: Sequence[str] = DEFAULT_GLOBS, exclude: Sequence[str] = ()
) -> list[Path]:
    """The files that ``inputs`` name: themselves, or those in a directory, recursively.

    Inputs keep their order; a directory's files are sorted by path, so the order of documents
    does not depend on the file system.

    Args:
        inputs: Files and directories.
        globs: Patterns of file names taken from a directory.
        exclude: Patterns of names of files or folders left out of a directory.

    Raises:
        UserError: an input that is missing or holds no file.
    """
    files: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = sorted(
                file
                for file in {match for glob in globs for match in path.rglob(glob)}
                if file.is_file() and not _excluded(file.relative_to(path), exclude)
            )
            if not found:
                raise UserError(f"input={name}: no file in it matches {', '.join(globs)}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"input={name} does not exist")
    return files


def _excluded(relative: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(part, pattern) for part in relative.parts for pattern in patterns)


def read_chunks(files: Iterable[Path], chunk_bytes: int = 1 << 20) -> Iterator[Chunk]:
    """Read ``files`` in order, in chunks of at least ``chunk_bytes`` (the last may be smaller).

    Raises:
        UserError: a file that cannot be read, or a damaged compressed file.
    """
    chunk = Chunk()
    for path in files:
        position = 0
        try:
            with path.open("rb") as raw:
                for record in _read_records(path, raw):
                    chunk.records.append(record)
                    chunk.text_bytes += len(record.data)
                    chunk.disk_bytes += raw.tell() - position
                    position = raw.tell()
                    if chunk.text_bytes >= chunk_bytes:
                        yield chunk
                        chunk = Chunk()
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise UserError(f"{path}: cannot be read: {error}") from error
    if chunk.records:
        yield chunk


def _read_records(path: Path, raw: BinaryIO) -> Iterator[Record]:
    decompress = _DECOMPRESSORS.get(path.suffix)
    stream = decompress(raw) if decompress else raw
    kind = path.with_suffix("").suffix if decompress else path.suffix
    if kind in _JSON_LINES:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield Record(path, number, line)
    else:
        yield Record(path, None, stream.read())


def read_texts(files: Iterable[Path], json_key: str) -> Iterator[str]:
    """The text of every document, in order."""
    for chunk in read_chunks(files):
        for record in chunk.records:
            yield record.text(json_key)
