"""Tokenizers: text to token ids and back."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models

from megatron_grow.data.tokenizers.coverage import Coverage
from megatron_grow.data.tokenizers.files import (
    END_OF_DOCUMENT,
    byte_level,
    library_errors,
    read_gpt2,
    read_tokenizer_json,
    read_vocabulary,
)
from megatron_grow.inputs.errors import UserError


class Tokenizer(ABC):
    """What preprocessing and training need to know of a tokenizer."""

    name: str
    """``bytes``, ``gpt2`` or the path of a tokenizer.json, as it was asked for."""
    vocab_size: int
    """Largest token id + 1, the end of document included."""
    eod: int
    """Id of the end-of-document token; :meth:`encode` never makes it out of text."""
    eod_token: str
    """How that token is written."""
    unknown: int | None = None
    """Id of the token that stands for text without one of its own; None where there is none."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, as one-dimensional integer arrays.

        Raises:
            UserError: a text that cannot be encoded.
        """

    def dropped(self, text: str) -> Counter[str]:
        """The characters of ``text`` that get no token, in order, and how often each occurs."""
        return Counter()

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``."""

    @abstractmethod
    def to_json(self) -> str:
        """The tokenizer as a Hugging Face tokenizer.json."""

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens."""
        return self.encode_batch([text])[0].tolist()


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8 and an end of document."""

    name = "bytes"
    vocab_size = 257
    eod = 256
    eod_token = END_OF_DOCUMENT

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The bytes of each text."""
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; a cut character becomes U+FFFD."""
        pieces = bytearray()
        for token in ids:
            pieces += END_OF_DOCUMENT.encode() if token == self.eod else bytes([token])
        return pieces.decode(errors="replace")

    def to_json(self) -> str:
        """A BPE that never merges, whose 256 tokens are the bytes."""
        # GPT-2 writes bytes that are no printable Latin-1 characters as those from U+0100 on.
        printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
        others = (byte for byte in range(256) if byte not in printable)
        names = {byte: chr(byte) for byte in printable}
        names |= {byte: chr(256 + number) for number, byte in enumerate(others)}
        vocabulary = {name: byte for byte, name in names.items()}
        backend = byte_level(models.BPE(vocab=vocabulary, merges=[]))
        backend.add_special_tokens([END_OF_DOCUMENT])
        return backend.to_str(pretty=True)


class SubwordTokenizer(Tokenizer):
    """A tokenizer of the ``tokenizers`` library.

    Raises:
        UserError: an end-of-document token that cannot be kept out of text.
    """

    def __init__(self, name: str, backend: tokenizers.Tokenizer, eod_token: str) -> None:
        # A corpus is encoded whole and always alike, and "<|endoftext|>" written in a document is
        # plain text.
        backend.no_truncation()
        backend.no_padding()
        if isinstance(backend.model, models.BPE):
            backend.model.dropout = None
        elif isinstance(backend.model, models.Unigram):
            backend.model.alpha = backend.model.nbest_size = None
        backend.add_special_tokens([eod_token])
        backend.encode_special_tokens = True
        self.name = name
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.eod = vocabulary[eod_token]
        self.eod_token = eod_token
        self.unknown = _unknown(backend)
        self._backend = backend
        self._coverage = Coverage(backend)
        if len(eod_token) == 1 or (self.unknown == self.eod and not self._coverage.has_all_bytes):
            raise UserError(
                f"tokenizer={name}: its end-of-document token {eod_token!r} also stands for text; "
                "name another as eos_token in the tokenizer_config.json beside it"
            )

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text; the library uses threads if TOKENIZERS_PARALLELISM lets it."""
        with library_errors(f"tokenizer={self.name} cannot encode this text"):
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        encoded = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        for number, ids in enumerate(encoded):
            if self.eod in ids:
                encoded[number] = self._spelt_out(texts[number])
        return encoded

    def _spelt_out(self, text: str) -> np.ndarray:
        """Token ids of a text in which the model itself finds the end of document.

        The text is cut after the first character of every one, so that it is put together from
        smaller tokens.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        found = zip(encoding.ids, encoding.offsets, strict=True)
        ends = [span for token, span in found if token == self.eod]
        for start, end in ends:
            if end - start < 2:
                raise UserError(
                    f"tokenizer={self.name} makes its end-of-document token {self.eod_token!r} "
                    f"out of {text[start:end]!r}"
                )
        cuts = [0, *(start + 1 for start, _ in ends), len(text)]
        pieces = [text[start:end] for start, end in pairwise(cuts)]
        return np.concatenate(self.encode_batch(pieces))

    def dropped(self, text: str) -> Counter[str]:
        """The characters of ``text`` that get no token, in order, and how often each occurs."""
        return self._coverage.dropped(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens included."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def to_json(self) -> str:
        """What the library makes of it."""
        return self._backend.to_str(pretty=True)


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Names what a tokenizer makes of text, and how it ends a document, in 16 hexadecimal digits.

    Equal for the same tokenizer under another path, or out of other files: what has no part in
    encoding (special tokens, decoder, templates for inference) has none in the digest.
    """
    parts = json.loads(tokenizer.to_json())
    content = {
        "model": {name: value for name, value in parts["model"].items() if value},
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "added_tokens": [token for token in parts["added_tokens"] if not token["special"]],
        "eod": tokenizer.eod,
    }
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unknown(backend: tokenizers.Tokenizer) -> int | None:
    if isinstance(backend.model, models.Unigram):
        return json.loads(backend.to_str())["model"]["unk_id"]
    token = backend.model.unk_token
    return None if token is None else backend.token_to_id(token)


def load_tokenizer(
    tokenizer: str, vocab_file: str | None = None, merge_file: str | None = None
) -> Tokenizer:
    """The tokenizer called ``bytes``, ``gpt2`` or by the path of a file.

    A name that ends in ``.txt`` is that of a WordPiece vocabulary, any other that of a Hugging Face
    tokenizer.json.

    Args:
        tokenizer: As ``data.tokenizer`` of a run file.
        vocab_file: vocab.json of ``gpt2``.
        merge_file: merges.txt of ``gpt2``.

    Raises:
        UserError: an unknown name, or a file that is missing or not what it should be.
    """
    if tokenizer == "bytes":
        return ByteTokenizer()
    if tokenizer == "gpt2":
        return SubwordTokenizer(tokenizer, *read_gpt2(vocab_file, merge_file))
    if not Path(tokenizer).is_file():
        raise UserError(
            f"tokenizer={tokenizer} is neither bytes nor gpt2 nor an existing tokenizer.json or "
            "vocab.txt"
        )
    if Path(tokenizer).suffix == ".txt":
        return SubwordTokenizer(tokenizer, *read_vocabulary(Path(tokenizer)))
    return SubwordTokenizer(tokenizer, *read_tokenizer_json(Path(tokenizer)))
