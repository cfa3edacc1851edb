"""Encoding: batches of documents to token ids.

Worker processes import this module and not torch, so that they start quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from megatron_grow.data.preprocess.corpora import Position, RawBatch, RawDocument
from megatron_grow.data.preprocess.findings import Findings
from megatron_grow.data.tokenizers.load import Tokenizer, load_tokenizer
from megatron_grow.inputs.errors import UserError

if TYPE_CHECKING:  # nltk takes a second, which those without sentences need not wait for
    from megatron_grow.data.preprocess.sentences import SentenceSplitter

# The indexed dataset counts the tokens of a sequence, and Megatron those of a sample, in int32.
_MAX_DOCUMENT_TOKENS = np.iinfo(np.int32).max


class EncodedDocument(NamedTuple):
    """A document as token ids; a document without text has none."""

    tokens: np.ndarray
    """All tokens, (tokens,)."""
    lengths: list[int]
    """Tokens of each sequence: of the document, or of its sentences."""


class EncodedBatch(NamedTuple):
    """The documents of a batch, and what there is to tell of them."""

    documents: list[EncodedDocument]
    findings: Findings
    disk_bytes: int
    """What was read from disk, for the progress bar."""
    end: Position
    """Where the input goes on."""


@dataclass(frozen=True)
class Encoder:
    """How a document becomes tokens. Sent to every worker, which loads the tokenizer itself."""

    tokenizer: str
    vocab_file: str | None
    merge_file: str | None
    json_key: str
    append_eod: bool
    split_sentences: SentenceSplitter | None
    """Text to the sentences in it; absent: a document is one sequence."""

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer; raises :class:`UserError` if it cannot be loaded."""
        return load_tokenizer(self.tokenizer, self.vocab_file, self.merge_file)

    def load(self) -> Callable[[RawBatch], EncodedBatch]:
        """The encoding function, its tokenizer loaded.

        A document that cannot be encoded becomes a document without text, which is told.
        """
        tokenizer = self.load_tokenizer()
        eod = np.array([tokenizer.eod], dtype=np.int32)

        def encode(batch: RawBatch) -> EncodedBatch:
            findings = Findings()
            texts = [self._texts(raw) for raw in batch.documents]
            encoded = _encode_all(tokenizer, texts)
            documents = []
            for raw, text, sequences in zip(batch.documents, texts, encoded, strict=True):
                document = self._document(sequences, eod)
                if isinstance(document, UserError):
                    findings.add_bad(f"{raw}: {document}")
                    document = EncodedDocument(eod[:0], [])
                else:
                    _tell(raw, text, document, tokenizer, findings)
                findings.add_document(raw.format.value)
                documents.append(document)
            for damage in batch.damage:
                findings.add_bad(damage)
            return EncodedBatch(documents, findings, batch.disk_bytes, batch.end)

        return encode

    def _texts(self, raw: RawDocument) -> list[str] | UserError:
        """The texts in a document that become a sequence each, or what is wrong with it."""
        try:
            text = raw.text(self.json_key)
        except UserError as error:
            return error
        if self.split_sentences:
            return self.split_sentences(text)
        return [text] if text else []

    def _document(
        self, encoded: list[np.ndarray] | UserError, eod: np.ndarray
    ) -> EncodedDocument | UserError:
        if isinstance(encoded, UserError):
            return encoded
        sequences = [tokens for tokens in encoded if tokens.size]
        if sequences and self.append_eod:
            sequences[-1] = np.concatenate([sequences[-1], eod])
        lengths = [tokens.size for tokens in sequences]
        if sum(lengths) > _MAX_DOCUMENT_TOKENS:
            return UserError(
                f"a document of {sum(lengths)} tokens; at most {_MAX_DOCUMENT_TOKENS} fit, "
                "so cut it into several"
            )
        return EncodedDocument(np.concatenate(sequences) if sequences else eod[:0], lengths)


def _encode_all(
    tokenizer: Tokenizer, documents: list[list[str] | UserError]
) -> list[list[np.ndarray] | UserError]:
    """Token ids of every text of every document, or what is wrong with the document."""
    readable = [texts for texts in documents if not isinstance(texts, UserError)]
    try:  # one batch for all, then regrouped by document
        encoded = iter(tokenizer.encode_batch([text for texts in readable for text in texts]))
    except UserError as error:
        if len(documents) == 1:
            return [error]
        return [found for texts in documents for found in _encode_all(tokenizer, [texts])]
    return [
        texts if isinstance(texts, UserError) else [next(encoded) for _ in texts]
        for texts in documents
    ]


def _tell(
    raw: RawDocument,
    texts: list[str] | UserError,
    document: EncodedDocument,
    tokenizer: Tokenizer,
    findings: Findings,
) -> None:
    """Count a document without text, and what of its text the tokenizer has no tokens for."""
    assert not isinstance(texts, UserError)
    findings.empty += not document.lengths
    if tokenizer.unknown is not None and (document.tokens == tokenizer.unknown).any():
        unknown = int((document.tokens == tokenizer.unknown).sum())
        findings.unknown.add(unknown, f"in {raw}")
    for character, count in tokenizer.dropped("".join(texts)).items():
        findings.dropped.add(count, f"{character!r} (U+{ord(character):04X}) in {raw}")
