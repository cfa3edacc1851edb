"""Corpora of sentences whose token ids say where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from megatron_grow.data.indexed import open_corpus
from megatron_grow.data.masked.options import MaskedOptions
from megatron_grow.data.masked.samples import MaskedSamples, MaskedText
from megatron_grow.data.tokenizers.masking import MaskingTokens
from tests.data.corpora import write_ids

CLS, SEP, MASK, PAD = 2, 3, 4, 1
FIRST = 5
"""Id of the token at the beginning of the corpus; the next one's is larger by one."""
VOCABULARY = 60_000

Documents = Sequence[Sequence[int]]
"""Tokens of each sentence of each document."""


def write_sentences(prefix: Path, documents: Documents) -> str:
    """A corpus without a sidecar."""
    lengths = [length for document in documents for length in document]
    ids = FIRST + np.arange(sum(lengths))
    return write_ids(prefix, ids, lengths, [len(document) for document in documents])


def special_tokens(continues: Sequence[int] = ()) -> MaskingTokens:
    """Those of a vocabulary in which the tokens ``continues`` go on with a word."""
    marks = np.zeros(VOCABULARY, dtype=bool)
    marks[list(continues)] = True
    ordinary = np.arange(FIRST, VOCABULARY)
    return MaskingTokens(CLS, SEP, MASK, PAD, ordinary, marks)


def make_samples(
    directory: Path,
    documents: Documents,
    seq_length: int,
    pairs: str,
    *,
    seed: int = 7,
    **options: object,
) -> MaskedSamples:
    """The samples of a corpus, read by nobody else."""
    prefix = str(directory / "c")
    if not Path(f"{prefix}.idx").exists():
        write_sentences(directory / "c", documents)
    corpus = open_corpus(prefix, "data.train_data_path")
    kind = MaskedText(seq_length, seed, pairs, MaskedOptions(**options), special_tokens())
    index = {
        name: _InMemory(array) for name, array in kind.index(corpus, (0, corpus.documents)).items()
    }
    return kind.samples(corpus, index, VOCABULARY)


class _InMemory(np.ndarray):
    """An array that is read as those of files are."""

    def __new__(cls, array: np.ndarray) -> _InMemory:
        return np.asarray(array).view(cls)

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= len(self)
        return np.asarray(self[start:stop])


def whole(sample: dict[str, torch.Tensor]) -> list[int]:
    """The tokens of a sample before any was masked, without padding."""
    tokens = sample["tokens"].clone()
    used = sample["masked_weights"] == 1
    tokens[sample["masked_positions"][used]] = sample["masked_labels"][used]
    return tokens[~sample["padding_mask"]].tolist()


def segments(sample: dict[str, torch.Tensor]) -> list[list[int]]:
    """Where the tokens of each segment stand in the corpus."""
    tokens = whole(sample)
    assert tokens[0] == CLS and tokens[-1] == SEP
    found: list[list[int]] = [[]]
    for token in tokens[1:-1]:
        if token == SEP:
            found.append([])
        else:
            assert token >= FIRST
            found[-1].append(token - FIRST)
    return found
