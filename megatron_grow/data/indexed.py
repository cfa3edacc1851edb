"""A corpus in Megatron's indexed format: PREFIX.bin, PREFIX.idx and, beside them, PREFIX.json."""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass
from typing import get_type_hints

import numpy as np
from megatron.core.datasets.indexed_dataset import DType

from megatron_grow.data.files import DataFile, FileArray
from megatron_grow.inputs.errors import UserError


@dataclass(frozen=True)
class Sidecar:
    """How a corpus was made; the indexed format itself does not say."""

    tokenizer: str
    vocab_size: int
    eod: int
    append_eod: bool
    documents: int
    tokens: int
    tokenizer_digest: str | None = None
    """:func:`~megatron_grow.data.tokenizers.load.tokenizer_digest`; older corpora have none."""
    sentences: str | None = None
    """What cut documents into sentences; None where a sequence is a document."""
    made_from: str | None = None
    """Tells whether it would be made alike again (``data/preprocess/journal.py``)."""


_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
"""Magic, version 1, code of the tokens' type, sequences, document bounds."""
_LENGTH, _POSITION = np.dtype("<i4"), np.dtype("<i8")
_BLOCK = 1 << 20
"""Entries of an index that are checked at a time."""


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk, found whole, its files open."""

    prefix: str
    tokens: FileArray
    """All token ids, (tokens,)."""
    lengths: FileArray
    """Tokens of each sequence, (sequences,) int32."""
    positions: FileArray
    """Where each sequence begins in the .bin, in bytes, (sequences,) int64."""
    bounds: FileArray
    """Sequences before each document and in all, int64; a document may have none."""
    documents: int
    """Documents with sequences."""
    longest: int
    """Most sequences of a document."""
    digest: str
    """Changes whenever the lengths of sequences or documents do, and with them the samples'
    indices."""
    sidecar: Sidecar | None

    @property
    def has_sentences(self) -> bool:
        """Whether a sequence is a sentence, and not a document."""
        return self.longest > 1 or bool(self.sidecar and self.sidecar.sentences)

    def begin(self, sequence: int) -> int:
        """Tokens before ``sequence``; of the corpus for the number after the last."""
        if sequence == len(self.lengths):
            return len(self.tokens)
        return int(self.positions.read(sequence, sequence + 1)[0]) // self.tokens.dtype.itemsize

    def document_bounds(self) -> np.ndarray:
        """Sequences before each document that has some, and in all, (documents + 1,)."""
        return np.unique(self.bounds.read(0, len(self.bounds)))

    def extreme_tokens(self) -> tuple[int, int]:
        """Smallest and largest token id: exact up to 4 Mi tokens, else of 64 blocks of 64 Ki."""
        block, blocks, size = 1 << 16, 64, len(self.tokens)
        if size <= block * blocks:
            found = [self.tokens.read(0, size)]
        else:
            starts = np.linspace(0, size - block, blocks, dtype=np.int64).tolist()
            found = [self.tokens.read(start, start + block) for start in starts]
        return min(int(ids.min()) for ids in found), max(int(ids.max()) for ids in found)


def open_corpus(prefix: str, where: str) -> Corpus:
    """Open the corpus at ``prefix`` and check all of its index, but not its tokens.

    Args:
        prefix: Path without suffix.
        where: The field that names it, for messages.

    Raises:
        UserError: a file that is missing, damaged or of another kind.
    """
    for suffix in (".bin", ".idx"):
        if not os.path.lexists(prefix + suffix):
            hint = "a corpus is a .bin and .idx"
            if prefix.endswith((".bin", ".idx")):
                hint = f"name the corpus without {prefix[-4:]}"
            raise UserError(f"{where}: {prefix}{suffix} does not exist; {hint}")
    index, binary = (DataFile(prefix + suffix, where) for suffix in (".idx", ".bin"))
    dtype, sequences, bounds = _read_header(index)
    lengths = FileArray(index, _LENGTH, (sequences,), _HEADER.size)
    positions = FileArray(index, _POSITION, (sequences,), lengths.offset + 4 * sequences)
    documents = FileArray(index, _POSITION, (bounds,), positions.offset + 8 * sequences)
    crc, size = _check_sequences(lengths, positions, dtype.itemsize)
    texts, longest = _check_documents(documents, sequences)
    if binary.size != size:
        raise UserError(
            f"{where}: {binary.path} has {binary.size} bytes and {index.path} expects {size}; "
            "it is truncated or belongs to another index"
        )
    tokens = FileArray(binary, dtype, (size // dtype.itemsize,), 0)
    sidecar = _read_sidecar(prefix, where)
    if sidecar and (sidecar.documents, sidecar.tokens) != (texts, len(tokens)):
        raise UserError(
            f"{where}: {prefix}.json tells of {sidecar.documents} documents and {sidecar.tokens} "
            f"tokens, {index.path} of {texts} and {len(tokens)}; it belongs to another corpus"
        )
    if longest > 1:  # else lengths say all of documents
        crc = zlib.crc32(documents.read(0, bounds).data, crc)
    digest = f"{crc:08x}"
    return Corpus(prefix, tokens, lengths, positions, documents, texts, longest, digest, sidecar)


def _read_header(index: DataFile) -> tuple[np.dtype, int, int]:
    """Type of the tokens, sequences, document bounds."""
    where = f"{index.where}: {index.path}"
    if index.size < _HEADER.size:
        raise UserError(
            f"{where} is truncated: {index.size} bytes, and its header alone has {_HEADER.size}"
        )
    header = index.read(_HEADER.size, 0)
    magic, version, code, sequences, bounds = _HEADER.unpack(header)
    if (magic, version) != (_MAGIC, 1):
        raise UserError(f"{where} is not a Megatron index of version 1: it begins with {magic!r}")
    try:
        dtype = np.dtype(DType.dtype_from_code(code))
    except ValueError:
        dtype = np.dtype(object)
    if dtype.kind not in "iu":
        raise UserError(f"{where} is damaged: {code} is not the code of an integer type of tokens")
    expected = _HEADER.size + 12 * sequences + 8 * bounds
    if index.size != expected:
        raise UserError(
            f"{where} is truncated or damaged: it has {index.size} bytes, and {expected} by its "
            f"header ({sequences} sequences, {bounds} document bounds)"
        )
    return dtype, sequences, bounds


def _check_sequences(lengths: FileArray, positions: FileArray, itemsize: int) -> tuple[int, int]:
    """Compare all positions with the running sum of lengths; a checksum and the sum in bytes."""
    crc = total = 0
    for start in range(0, len(lengths), _BLOCK):
        stop = min(start + _BLOCK, len(lengths))
        found = lengths.read(start, stop)
        sizes = found.astype(np.int64) * itemsize
        ends = total + np.cumsum(sizes)
        wrong = (found < 0) | (positions.read(start, stop) != ends - sizes)
        if wrong.any():
            raise UserError(
                f"{lengths.file.where}: {lengths.file.path} is damaged: length or position of "
                f"sequence {start + int(wrong.argmax())} does not continue those before"
            )
        crc, total = zlib.crc32(found.data, crc), int(ends[-1])
    return crc, total


def _check_documents(documents: FileArray, sequences: int) -> tuple[int, int]:
    """Bounds rise from 0 to ``sequences``; documents with sequences, and the most of one."""
    where, last, longest, texts = f"{documents.file.where}: {documents.file.path}", 0, 0, 0
    for start in range(0, len(documents), _BLOCK):
        found = documents.read(start, min(start + _BLOCK, len(documents)))
        steps = np.diff(found, prepend=last)
        wrong = steps < 0
        wrong[0] |= start == 0 and found[0] != 0
        if wrong.any():
            raise UserError(
                f"{where} is damaged: document bound {start + int(wrong.argmax())} is out of order"
            )
        last, longest = int(found[-1]), max(longest, int(steps.max()))
        texts += int(np.count_nonzero(steps))
    if last != sequences:
        raise UserError(f"{where} is damaged: its documents end at sequence {last} of {sequences}")
    return texts, longest


_SIDECAR_BYTES = 1 << 16


def _read_sidecar(prefix: str, where: str) -> Sidecar | None:
    path = f"{prefix}.json"
    if not os.path.lexists(path):
        return None  # a corpus that Megatron-LM's own tool made
    file = DataFile(path, where)
    text = file.read(min(file.size, _SIDECAR_BYTES), 0)
    try:
        return _parse_sidecar(json.loads(text.decode("utf-8-sig")))
    except (TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{where}: {path} does not describe the corpus beside it: {reason}; restore it, or "
            "move it away if it is no part of the corpus"
        ) from error


def _parse_sidecar(values: object) -> Sidecar:
    if not isinstance(values, dict):
        raise TypeError("it is not a JSON object")
    kinds = get_type_hints(Sidecar)
    sidecar = Sidecar(**{name: values[name] for name in kinds if name in values})
    for name, kind in kinds.items():
        if not isinstance(getattr(sidecar, name), kind):
            raise TypeError(f"{name} is {getattr(sidecar, name)!r}")
    return sidecar
