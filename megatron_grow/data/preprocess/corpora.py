"""Raw corpora: files of text, JSON or Parquet, read as a stream of documents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import BinaryIO

from megatron_grow.data.preprocess.compression import DAMAGE, open_stream
from megatron_grow.data.preprocess.inputs import InputFile, no_key
from megatron_grow.data.preprocess.json_values import read_values
from megatron_grow.data.preprocess.parquet import read_rows
from megatron_grow.data.preprocess.sniff import Format
from megatron_grow.inputs.errors import UserError

_UNITS = {Format.JSON_LINES: "line", Format.JSON: "entry", Format.PARQUET: "row"}


def _place(path: Path, format: Format, number: int) -> str:
    unit = _UNITS.get(format)
    return f"{path}, {unit} {number}" if unit else str(path)


@dataclass(frozen=True)
class RawDocument:
    """A document as it lies in a file, not yet decoded."""

    path: Path
    format: Format
    number: int
    """Line, entry or row, from 1; where the whole file is the document, 1."""
    data: bytes

    def __str__(self) -> str:
        return _place(self.path, self.format, self.number)

    def text(self, json_key: str) -> str:
        """The document's text.

        Raises:
            UserError: not UTF-8, not a JSON object, or no text under ``json_key``.
        """
        if self.format in (Format.JSON_LINES, Format.JSON):
            return self._parse(json_key)
        return self._decode()

    def _decode(self) -> str:
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 at byte {error.start}: {error.reason}") from error

    def _parse(self, json_key: str) -> str:
        try:
            value = json.loads(self._decode())
        except json.JSONDecodeError as error:
            raise UserError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
        except (ValueError, RecursionError) as error:  # beyond what Python parses
            raise UserError(f"not JSON: {error}") from error
        if not isinstance(value, dict):
            raise UserError(f"a JSON object is expected, not {type(value).__name__}")
        if json_key not in value:
            raise UserError(no_key(json_key, value))
        text = value[json_key]
        if not isinstance(text, str):
            found = type(text).__name__
            raise UserError(f"the value of {json_key!r} must be a string, not {found}")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair
            raise UserError(f"the text is not valid Unicode: {error.reason}") from error
        return text


@dataclass(frozen=True, order=True)
class Position:
    """A place between two documents of the input."""

    file: int = 0
    """Number of the file, from 0."""
    entries: int = 0
    """Lines, entries or rows of it that lie before."""
    offset: int = 0
    """Bytes of JSON lines before, decompressed."""


@dataclass
class RawBatch:
    """Some consecutive documents: what a worker is given at a time."""

    documents: list[RawDocument] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    """Files that broke off: where, and how."""
    text_bytes: int = 0
    """Size of the documents."""
    disk_bytes: int = 0
    """What was read from disk for them, for the progress bar."""
    end: Position = Position()
    """Behind the last document."""


def read_batches(
    files: Sequence[InputFile], json_key: str, start: Position, batch_bytes: int = 1 << 20
) -> Iterator[RawBatch]:
    """Read ``files`` in order, in batches of at least ``batch_bytes`` (the last may be smaller).

    A damaged file ends where the damage begins, which its batch tells.

    Args:
        files: The input.
        json_key: Column of the text in Parquet.
        start: Where to begin.
        batch_bytes: Size of a batch's documents, decompressed.

    Raises:
        UserError: a file that cannot be read, though not by its own fault.
    """
    batch = RawBatch()
    for number, file in enumerate(files[start.file :], start.file):
        end = begin = start if number == start.file else Position(number)
        tell = 0
        try:
            stream, raw = open_stream(file.path)
            with raw:
                for document, end in _read_documents(file, stream, json_key, begin):
                    batch.end = end
                    batch.documents.append(document)
                    batch.text_bytes += len(document.data)
                    batch.disk_bytes += raw.tell() - tell
                    tell = raw.tell()
                    if batch.text_bytes >= batch_bytes:
                        yield batch
                        batch = RawBatch(end=end)
        except DAMAGE as error:
            place = _place(file.path, file.format, end.entries + 1)
            batch.damage.append(f"{place}: cannot be read: {error}")
        except OSError as error:
            raise UserError(f"{file.path}: cannot be read: {error.strerror or error}") from error
        batch.disk_bytes += file.size - tell
        batch.end = Position(number + 1)
    if batch.documents or batch.damage:
        yield batch


def _read_documents(
    file: InputFile, stream: BinaryIO, column: str, begin: Position
) -> Iterator[tuple[RawDocument, Position]]:
    """The documents of a file from ``begin`` on, and where each ends."""
    if file.format is Format.TEXT:
        yield RawDocument(file.path, file.format, 1, stream.read()), Position(begin.file + 1)
        return
    entries = count(begin.entries + 1)
    if file.format is Format.JSON_LINES:
        offset = stream.seek(begin.offset)
        for number, line in zip(entries, stream, strict=False):
            offset += len(line)
            if line.strip():
                document = RawDocument(file.path, file.format, number, line)
                yield document, Position(begin.file, number, offset)
        return
    texts = read_rows(file.path, column) if file.format is Format.PARQUET else read_values(stream)
    for number, text in zip(entries, islice(texts, begin.entries, None), strict=False):
        document = RawDocument(file.path, file.format, number, text.encode())
        yield document, Position(begin.file, number)


def read_texts(files: Sequence[InputFile], json_key: str, skip_bad: bool) -> Iterator[str]:
    """The text of every document, in order.

    Args:
        files: The input.
        json_key: Key or column of the text.
        skip_bad: Take a document that cannot be read for a document without text.

    Raises:
        UserError: a document or a file that cannot be read.
    """
    for batch in read_batches(files, json_key, Position()):
        for document in batch.documents:
            try:
                text = document.text(json_key)
            except UserError as error:
                if not skip_bad:
                    raise UserError(f"{document}: {error}") from error
                text = ""
            yield text
        if batch.damage and not skip_bad:
            raise UserError(batch.damage[0])
