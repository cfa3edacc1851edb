"""A corpus in Megatron's indexed format: PREFIX.bin, PREFIX.idx and, beside them, PREFIX.json."""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import _IndexReader

from megatron_grow.config.errors import UserError


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
    """:func:`~megatron_grow.data.tokenizers.tokenizer_digest`; older corpora have none."""


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk, found whole."""

    prefix: str
    dtype: type[np.number]
    lengths: np.ndarray
    """Tokens of each document, (documents,) int32."""
    sidecar: Sidecar | None

    @cached_property
    def tokens(self) -> int:
        """Tokens in the corpus."""
        return int(self.lengths.sum(dtype=np.int64))

    @cached_property
    def digest(self) -> str:
        """Changes whenever the lengths of documents do, and with them the samples' indices."""
        return f"{zlib.crc32(self.lengths.data):08x}"

    def largest_token(self) -> int:
        """The largest token id, exact up to 16 Mi tokens, else that of 16 evenly spaced blocks."""
        tokens = np.memmap(f"{self.prefix}.bin", dtype=self.dtype, mode="r")
        block = 1 << 20
        if tokens.size <= 16 * block:
            return int(tokens.max())
        starts = np.linspace(0, tokens.size - block, 16, dtype=np.int64)
        return max(int(tokens[start : start + block].max()) for start in starts)


def open_corpus(prefix: str, where: str) -> Corpus:
    """Look at the corpus at ``prefix``, without reading its tokens.

    Args:
        prefix: Path without suffix.
        where: The field that names it, for messages.

    Raises:
        UserError: a file that is missing, truncated or of another kind; a corpus of sentences.
    """
    for suffix in (".bin", ".idx"):
        if not os.path.isfile(prefix + suffix):
            raise UserError(
                f"{where}: {prefix}{suffix} does not exist; a corpus is a .bin and .idx"
            )
    try:
        index = _IndexReader(f"{prefix}.idx", multimodal=False)
    except (AssertionError, ValueError, struct.error) as error:
        raise UserError(
            f"{where}: {prefix}.idx is truncated or not a Megatron index: {error}"
        ) from error
    if len(index.document_indices) != len(index) + 1:
        raise UserError(
            f"{where}: {prefix} is cut into sentences, which GPT training would shuffle; "
            "make it without --split-sentences"
        )
    lengths = index.sequence_lengths.copy()  # the reader closes its memory map behind it
    expected = int(lengths.sum(dtype=np.int64)) * index.dtype_size
    found = os.path.getsize(f"{prefix}.bin")
    if found != expected:
        raise UserError(
            f"{where}: {prefix}.bin has {found} bytes and {prefix}.idx expects {expected}; "
            "it is truncated or belongs to another index"
        )
    return Corpus(prefix, index.dtype, lengths, _read_sidecar(prefix, where))


def _read_sidecar(prefix: str, where: str) -> Sidecar | None:
    path = Path(f"{prefix}.json")
    if not path.is_file():
        return None  # a corpus that Megatron-LM's own tool made
    try:
        return Sidecar(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {path} does not describe a corpus: {error}") from error
