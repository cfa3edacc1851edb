"""Encoding: chunks of records to token ids, in worker processes, in order.

Worker processes import this module and not torch, so that they start quickly.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from megatron_grow.config.errors import UserError
from megatron_grow.data.corpora import Chunk
from megatron_grow.data.tokenizers import Tokenizer, load_tokenizer

# The indexed dataset counts the tokens of a sequence, and Megatron those of a sample, in int32.
_MAX_DOCUMENT_TOKENS = np.iinfo(np.int32).max


class EncodedDocument(NamedTuple):
    """A document as token ids; a document without text has none."""

    tokens: np.ndarray
    """All tokens, (tokens,)."""
    lengths: list[int]
    """Tokens of each sequence: of the document, or of its sentences."""


class EncodedChunk(NamedTuple):
    """The documents of a chunk, and its size on disk for the progress bar."""

    documents: list[EncodedDocument]
    disk_bytes: int


@dataclass(frozen=True)
class Encoder:
    """How a record becomes tokens. Sent to every worker, which loads the tokenizer itself."""

    tokenizer: str
    vocab_file: str | None
    merge_file: str | None
    json_key: str
    append_eod: bool
    split_sentences: Callable[[str], list[str]] | None
    """Text to the sentences in it; absent: a document is one sequence."""

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer; raises :class:`UserError` if it cannot be loaded."""
        return load_tokenizer(self.tokenizer, self.vocab_file, self.merge_file)

    def load(self) -> Callable[[Chunk], EncodedChunk]:
        """The encoding function, its tokenizer loaded.

        It raises :class:`UserError` for a record that cannot be read and for a document that is
        too long for the format.
        """
        tokenizer = self.load_tokenizer()
        eod = np.array([tokenizer.eod], dtype=np.int32)

        def encode(chunk: Chunk) -> EncodedChunk:
            texts = [record.text(self.json_key) for record in chunk.records]
            if self.split_sentences:
                pieces = [self.split_sentences(text) for text in texts]
            else:
                pieces = [[text] if text else [] for text in texts]
            # One batch for the whole chunk, then regrouped by document.
            encoded = iter(tokenizer.encode_batch([piece for group in pieces for piece in group]))
            documents = []
            for record, group in zip(chunk.records, pieces, strict=True):
                sequences = [tokens for tokens in (next(encoded) for _ in group) if tokens.size]
                if sequences and self.append_eod:
                    sequences[-1] = np.concatenate([sequences[-1], eod])
                lengths = [tokens.size for tokens in sequences]
                if sum(lengths) > _MAX_DOCUMENT_TOKENS:
                    raise UserError(
                        f"{record}: a document of {sum(lengths)} tokens; at most "
                        f"{_MAX_DOCUMENT_TOKENS} fit, so cut it into several"
                    )
                tokens = np.concatenate(sequences) if sequences else eod[:0]
                documents.append(EncodedDocument(tokens, lengths))
            return EncodedChunk(documents, chunk.disk_bytes)

        return encode


def encode_in_order(
    chunks: Iterable[Chunk], encoder: Encoder, workers: int
) -> Iterator[EncodedChunk]:
    """Encode ``chunks`` in ``workers`` processes; results come in the order of the chunks.

    A few chunks for each worker are in memory at a time.
    """
    # Spawned, since the tokenizers library has threads that would not survive a fork.
    context = multiprocessing.get_context("spawn")
    pending: deque[Future[EncodedChunk]] = deque()
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(encoder,)
    ) as pool:
        try:
            for chunk in chunks:
                pending.append(pool.submit(_encode, chunk))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_encode_chunk: Callable[[Chunk], EncodedChunk]


def _start_worker(encoder: Encoder) -> None:
    global _encode_chunk
    # One process is one worker: the tokenizers library adds no threads of its own.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encode_chunk = encoder.load()


def _end_with_parent() -> None:
    """Exit when the parent has gone: a worker of a killed run would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(chunk: Chunk) -> EncodedChunk:
    return _encode_chunk(chunk)
