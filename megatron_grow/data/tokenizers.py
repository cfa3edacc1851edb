"""Tokenizers: text to token ids and back."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from megatron_grow.config.errors import UserError

END_OF_DOCUMENT = "<|endoftext|>"

# Names under which published tokenizers keep their end-of-document token, tried in this order
# where no tokenizer_config.json says which one it is.
_KNOWN_END_TOKENS = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")


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

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, as one-dimensional integer arrays."""

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
        backend = _byte_level(models.BPE(vocab=vocabulary, merges=[]))
        backend.add_special_tokens([END_OF_DOCUMENT])
        return backend.to_str(pretty=True)


class SubwordTokenizer(Tokenizer):
    """A tokenizer of the ``tokenizers`` library."""

    def __init__(self, name: str, backend: tokenizers.Tokenizer, eod: int) -> None:
        self.name = name
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.eod = eod
        self.eod_token = str(backend.id_to_token(eod))
        self._backend = backend
        # A corpus is encoded whole and always alike, and "<|endoftext|>" written in a document is
        # plain text.
        backend.no_truncation()
        backend.no_padding()
        if isinstance(backend.model, models.BPE):
            backend.model.dropout = None
        backend.add_special_tokens([self.eod_token])
        backend.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text; the library uses threads if TOKENIZERS_PARALLELISM lets it."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

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


def load_tokenizer(
    tokenizer: str, vocab_file: str | None = None, merge_file: str | None = None
) -> Tokenizer:
    """The tokenizer called ``bytes``, ``gpt2`` or by the path of a Hugging Face tokenizer.json.

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
        return _load_gpt2(vocab_file, merge_file)
    path = Path(tokenizer)
    if not path.is_file():
        raise UserError(
            f"tokenizer={tokenizer} is neither bytes nor gpt2 nor an existing tokenizer.json"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"tokenizer={tokenizer} is not a readable tokenizer.json: {error}"
        ) from error
    return SubwordTokenizer(tokenizer, backend, _end_of_document(path, backend))


def _load_gpt2(vocab_file: str | None, merge_file: str | None) -> Tokenizer:
    if vocab_file is None or merge_file is None:
        raise UserError(
            f"tokenizer=gpt2 needs vocab_file={vocab_file} and merge_file={merge_file} to name "
            "GPT-2's vocab.json and merges.txt"
        )
    for name, file in (("vocab_file", vocab_file), ("merge_file", merge_file)):
        if not Path(file).is_file():
            raise UserError(f"{name}={file} does not exist")
    try:
        model = models.BPE.from_file(vocab_file, merge_file)
    except Exception as error:
        raise UserError(
            f"vocab_file={vocab_file} and merge_file={merge_file} do not make a BPE: {error}"
        ) from error
    backend = _byte_level(model)
    eod = backend.token_to_id(END_OF_DOCUMENT)
    if eod is None:
        raise UserError(f"vocab_file={vocab_file} has no token {END_OF_DOCUMENT}")
    return SubwordTokenizer("gpt2", backend, eod)


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """GPT-2's treatment of text around a BPE: any bytes in, the same bytes out."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _end_of_document(path: Path, backend: tokenizers.Tokenizer) -> int:
    """The end-of-document id: eos_token of tokenizer_config.json beside ``path``, else guessed."""
    candidates = list(_KNOWN_END_TOKENS)
    config = path.with_name("tokenizer_config.json")
    if config.is_file():
        eos = json.loads(config.read_text(encoding="utf-8")).get("eos_token")
        if eos:
            candidates.insert(0, eos["content"] if isinstance(eos, dict) else eos)
    for token in candidates:
        eod = backend.token_to_id(token)
        if eod is not None:
            return eod
    raise UserError(
        f"tokenizer={path} has no end-of-document token: none of {', '.join(candidates)}; "
        "name it as eos_token in a tokenizer_config.json beside it"
    )


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Train a byte-level BPE whose end of document is ``<|endoftext|>``, with id 0.

    The same texts give the same tokenizer, whatever the number of threads. A corpus too small for
    ``vocab_size`` tokens gives fewer.

    Raises:
        UserError: ``vocab_size`` is too small to hold the 256 bytes and the end of document.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 1:
        raise UserError(
            f"train_tokenizer={vocab_size} must be at least {len(alphabet) + 1}: "
            "256 bytes and the end of document"
        )
    backend = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend
