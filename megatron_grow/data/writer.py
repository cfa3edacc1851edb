"""Making a corpus in Megatron's indexed format, whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

from megatron_grow.data.indexed import Sidecar


class CorpusWriter:
    """Writes a corpus document by document with Megatron's own builder.

    Args:
        prefix: Path without suffix, in a staging directory (see :func:`publish`).
        vocab_size: Decides the width of a token on disk, 2 or 4 bytes.
    """

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self.prefix = prefix
        self.documents = 0
        self.tokens = 0
        self._builder = IndexedDatasetBuilder(
            f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size)
        )

    def add(self, tokens: np.ndarray, lengths: list[int]) -> None:
        """Append a document of ``tokens`` (tokens,), cut into sequences of ``lengths``."""
        self._builder.add_document(tokens, lengths)
        self.documents += 1
        self.tokens += sum(lengths)

    def finish(self, sidecar: Sidecar) -> None:
        """Write the index and the sidecar; nothing can be added afterwards."""
        self._builder.finalize(f"{self.prefix}.idx")
        text = json.dumps(asdict(sidecar), indent=2) + "\n"
        Path(f"{self.prefix}.json").write_text(text, encoding="utf-8")


def publish(staging: Path, target: Path) -> None:
    """Move all files of one directory to another on the same file system, durably.

    A corpus counts as whole once its .idx is there: an old one of the same name loses it first
    and the new one gets it last, so that a run killed in between leaves nothing that looks whole.
    """
    files = sorted(staging.iterdir(), key=lambda file: file.suffix == ".idx")
    for file in files:
        _sync(file)
    for file in files:
        if file.suffix == ".idx":
            (target / file.name).unlink(missing_ok=True)
    for file in files:
        os.replace(file, target / file.name)
    _sync(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
