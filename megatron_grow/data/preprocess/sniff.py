"""What a file of a raw corpus holds, told from its content; its name settles what that leaves."""

from __future__ import annotations

import codecs
import json
from enum import Enum
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from megatron_grow.data.preprocess.compression import DAMAGE, SUFFIXES, UnreadableError, open_stream
from megatron_grow.data.preprocess.parquet import text_columns

_HEAD = 1 << 16
# A first document that does not end in the head is looked at up to this size.
_FIRST_DOCUMENT = 1 << 24
_LINES = 100
_LINES_SUFFIXES = {".jsonl", ".ndjson"}
_JSON_SUFFIXES = {".json", *_LINES_SUFFIXES}
_OTHER_KINDS = {
    b"PK\x03\x04": "zip archive",
    b"7z\xbc\xaf": "7z archive",
    b"Rar!": "rar archive",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x1f\x9d": "compress",
    b"ARROW1": "Arrow",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
# What no text has: control characters but tab, line feed, vertical tab, form feed, return, escape.
_CONTROL = [bytes([code]) for code in (*range(9), *range(14, 27), *range(28, 32))]


class Format(str, Enum):
    """How documents lie in a file."""

    TEXT = "text"
    """The file is one document."""
    JSON_LINES = "JSON lines"
    """An object on each line."""
    JSON = "JSON"
    """Objects over any number of lines, one after another or in an array."""
    PARQUET = "Parquet"
    """A document in each row."""


class Content(NamedTuple):
    """What a file holds."""

    format: Format
    keys: list[str] | None = None
    """Keys of its first document, or its columns of text; None where none are to be seen."""


def suffix(path: Path) -> str:
    """The suffix of what is in ``path``, in lower case: ``.json`` for X.JSON.gz."""
    inner = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
    return inner.suffix.lower()


def sniff(path: Path, skip_bad: bool) -> Content:
    """What ``path`` holds; of a damaged file, with ``skip_bad``, what it holds before the damage.

    Raises:
        UnreadableError: neither text nor JSON nor Parquet, or its library is not installed.
        OSError: a file that cannot be read; one of ``DAMAGE``, if it is damaged.
    """
    stream, raw = open_stream(path)
    with raw:
        head = _read_head(stream, skip_bad)
        if head.startswith(b"PAR1"):
            return Content(Format.PARQUET, text_columns(path))
        _refuse_other_kinds(head)
        head = head.removeprefix(codecs.BOM_UTF8).lstrip()
        named = suffix(path) in _LINES_SUFFIXES
        content = _json_lines(head, len(head) > _HEAD // 2, named)
        if head.startswith((b"{", b"[")):
            for read in (stream.readline, stream.read):
                if content is None:
                    head += read(_FIRST_DOCUMENT)
                    cut = len(head) > _FIRST_DOCUMENT
                    content = _json_lines(head, cut, named) or _json(head)
    by_name = Format.JSON_LINES if suffix(path) in _JSON_SUFFIXES else Format.TEXT
    return content or Content(by_name)


def _read_head(stream: BinaryIO, skip_bad: bool) -> bytes:
    head = b""
    try:
        # Not read(), which loses what lies before the damage.
        while len(head) < _HEAD and (piece := cast(BufferedIOBase, stream).read1(_HEAD)):
            head += piece
    except DAMAGE:
        if not (head and skip_bad):
            raise
    return head


def _refuse_other_kinds(head: bytes) -> None:
    for magic, kind in _OTHER_KINDS.items():
        if head.startswith(magic):
            raise UnreadableError(kind)
    if head[257:262] == b"ustar":
        raise UnreadableError("tar archive")
    control = sum(head.count(code) for code in _CONTROL)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
        binary = control > len(head) // 100
    except UnicodeDecodeError:
        binary = control > 0  # without any, it is text in another encoding
    if binary:
        raise UnreadableError("binary")


def _json_lines(head: bytes, cut: bool, named: bool) -> Content | None:
    """Whether at least half of the first hundred lines are objects; if so named, the first one.

    A single object is not lines of them, unless it is so named.
    """
    lines = head.split(b"\n", _LINES)
    if cut or len(lines) > _LINES:
        lines.pop()
    found = [_parse(line) for line in lines if line.strip()]
    objects = [value for value in found if value is not None]
    several = len(found) > 1 or cut
    mostly = several and 2 * len(objects) >= len(found)
    if objects and (mostly or (named and found[0] is not None)):
        return Content(Format.JSON_LINES, list(objects[0]))
    return None


def _json(head: bytes) -> Content | None:
    """Whether a JSON object, or an array of them, begins the file."""
    text = head.decode(errors="ignore").removeprefix("[").lstrip()
    try:
        found, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    goes_on = text[end:].lstrip()[:1] in ("", "{", ",", "]")
    return Content(Format.JSON, list(found)) if isinstance(found, dict) and goes_on else None


def _parse(line: bytes) -> dict | None:
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
