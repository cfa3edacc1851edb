"""Making a corpus in Megatron's indexed format, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, _IndexWriter

from megatron_grow.data.indexed import Sidecar
from megatron_grow.files.durable import flush, sync
from megatron_grow.inputs.errors import UserError


class CorpusWriter:
    """Writes a corpus document by document; what is written can be gone on with later.

    Args:
        prefix: Path without suffix, in a staging directory (see :func:`move_into_place`).
        vocab_size: Decides the width of a token on disk, 2 or 4 bytes.
        sizes: :attr:`sizes` of an earlier writer, to go on from there.

    Raises:
        UserError: less is there than the earlier writer left.
    """

    def __init__(self, prefix: Path, vocab_size: int, sizes: Sequence[int] = (0, 0, 0)) -> None:
        self.prefix = prefix
        self._dtype = DType.optimal_dtype(vocab_size)
        # The index holds lengths and document ends; until it is written, they are in two files.
        self._paths = [Path(f"{prefix}{suffix}") for suffix in (".bin", ".lengths", ".documents")]
        self._files = []
        for path, size in zip(self._paths, sizes, strict=True):
            path.touch()
            if path.stat().st_size < size:
                raise UserError(f"{path} is damaged; delete {path.parent} to start over")
            os.truncate(path, size)
            self._files.append(path.open("ab"))
        self.tokens = sizes[0] // DType.size(self._dtype)
        self._sequences = sizes[1] // np.dtype(np.int32).itemsize
        self.documents = sizes[2] // np.dtype(np.int64).itemsize

    def add(self, tokens: np.ndarray, lengths: Sequence[int]) -> None:
        """Append a document of ``tokens`` (tokens,), cut into sequences of ``lengths``."""
        self._sequences += len(lengths)
        self.tokens += len(tokens)
        self.documents += 1
        tokens_file, lengths_file, documents_file = self._files
        tokens_file.write(tokens.astype(self._dtype).tobytes())
        lengths_file.write(np.array(lengths, dtype=np.int32).tobytes())
        documents_file.write(np.int64(self._sequences).tobytes())

    @property
    def sizes(self) -> list[int]:
        """Bytes in the files that keep what was added."""
        return [file.tell() for file in self._files]

    def sync(self) -> None:
        """Bring all that was added to the disk."""
        for file in self._files:
            flush(file)

    def finish(self, sidecar: Sidecar) -> None:
        """Write .idx and .json; nothing can be added afterwards."""
        for file in self._files:
            file.close()
        _, lengths, documents = self._paths
        ends = np.fromfile(documents, dtype=np.int64)
        with _IndexWriter(f"{self.prefix}.idx", self._dtype) as writer:
            writer.write(np.fromfile(lengths, dtype=np.int32), None, np.append(0, ends))
        text = json.dumps(asdict(sidecar), indent=2) + "\n"
        Path(f"{self.prefix}.json").write_text(text, encoding="utf-8")


def move_into_place(staging: Path, target: Path, names: Sequence[str]) -> None:
    """Move files of one directory to another on the same file system, durably.

    Where it was interrupted before, it moves those that are left. The files are on the disk.

    A corpus counts as whole once its .idx is there: an old one of the same name loses it first
    and the new one gets it last, so that a run killed in between leaves nothing that looks whole.

    Raises:
        UserError: a file that is in neither.
    """
    for name in names:
        if not (staging / name).exists() and not (target / name).exists():
            raise UserError(f"{target / name} is gone; delete {staging} to start over")
    left = (staging / name for name in names if (staging / name).exists())
    files = sorted(left, key=lambda file: file.suffix == ".idx")
    for file in files:
        if file.suffix == ".idx":
            (target / file.name).unlink(missing_ok=True)
    for file in files:
        os.replace(file, target / file.name)
    sync(target)
