"""The splits of a corpus, written side by side and marked in the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import TracebackType

from megatron_grow.data.indexed import Sidecar
from megatron_grow.data.preprocess.encode import EncodedBatch
from megatron_grow.data.preprocess.journal import Journal, Made
from megatron_grow.data.preprocess.writer import CorpusWriter
from megatron_grow.data.signals import undisturbed
from megatron_grow.data.tokenizers.load import Tokenizer, tokenizer_digest

MARK_SECONDS = 30
"""Work that a killed run loses, at most."""


class SplitsWriter:
    """Writes each document into its split; as a context manager it marks what was written.

    Args:
        staging: Where the splits are written.
        names: Of each split's files, without suffix.
        split: Number of a document in the input, from 0, to the split it belongs to.
        tokenizer: What the documents were encoded with.
        journal: Told now and then of what is on the disk.
        made: Where to go on.
    """

    def __init__(
        self,
        staging: Path,
        names: Mapping[str, str],
        split: Callable[[int], str],
        tokenizer: Tokenizer,
        journal: Journal,
        made: Made,
    ) -> None:
        self.made = made
        """What has been written."""
        self._split, self._tokenizer, self._journal = split, tokenizer, journal
        self._marked = time.monotonic()
        self._writers = {
            split: CorpusWriter(
                staging / name, tokenizer.vocab_size, made.sizes.get(split, (0, 0, 0))
            )
            for split, name in names.items()
        }

    @property
    def tokens(self) -> int:
        """Tokens in all splits."""
        return sum(writer.tokens for writer in self._writers.values())

    def write(self, batch: EncodedBatch) -> None:
        """Write the documents of a batch: all of them, whatever signal arrives."""
        with undisturbed():
            numbers = count(self.made.findings.total)
            for document in batch.documents:
                writer = self._writers[self._split(next(numbers))]
                if document.lengths:
                    writer.add(document.tokens, document.lengths)
            sizes = {split: writer.sizes for split, writer in self._writers.items()}
            self.made = self.made.after(batch, sizes)
            if time.monotonic() - self._marked > MARK_SECONDS:
                self._mark()

    def _mark(self) -> None:
        for writer in self._writers.values():
            writer.sync()
        self._journal.mark(self.made)
        self._marked = time.monotonic()

    def __enter__(self) -> SplitsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.made.sizes and not isinstance(error, OSError):
            with undisturbed():
                self._mark()

    def finish(
        self, tokenizer_name: str, append_eod: bool, made_from: str, sentences: str | None
    ) -> Made:
        """Write indices and sidecars.

        Args:
            tokenizer_name: The tokenizer as a run file names it.
            append_eod: Whether documents end with the end-of-document token.
            made_from: Out of what, and how (:func:`~megatron_grow.data.preprocess.journal.origin`).
            sentences: What cut documents into sentences, if they are.

        Returns:
            What has been made, the splits written.
        """
        for writer in self._writers.values():
            writer.finish(
                Sidecar(
                    tokenizer=tokenizer_name,
                    vocab_size=self._tokenizer.vocab_size,
                    eod=self._tokenizer.eod,
                    append_eod=append_eod,
                    documents=writer.documents,
                    tokens=writer.tokens,
                    tokenizer_digest=tokenizer_digest(self._tokenizer),
                    made_from=made_from,
                    sentences=sentences,
                )
            )
        written = {split: [file.documents, file.tokens] for split, file in self._writers.items()}
        return replace(self.made, written=written)
