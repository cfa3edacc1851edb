"""Masked samples of a corpus by number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from megatron_grow.data.cache import Arrays
from megatron_grow.data.epochs import Epochs
from megatron_grow.data.indexed import Corpus
from megatron_grow.data.masked.choice import mask
from megatron_grow.data.masked.chunks import FRAME, Pairs, chunk, longest_unit
from megatron_grow.data.masked.options import MaskedOptions
from megatron_grow.data.masked.units import units_of
from megatron_grow.data.reading import read_text
from megatron_grow.data.samples import Index
from megatron_grow.data.tokenizers.masking import MaskingTokens
from megatron_grow.inputs.errors import UserError

Span = tuple[int, int]
"""Where a segment begins and ends in the corpus, in tokens."""


@dataclass(frozen=True)
class MaskedText:
    """Masked samples of ``seq_length`` tokens, all of which ``seed`` decides."""

    seq_length: int
    seed: int
    pairs: Pairs
    options: MaskedOptions
    tokens: MaskingTokens

    @property
    def room(self) -> int:
        """Tokens of text in a sample, at most."""
        return self.seq_length - FRAME[self.pairs]

    @property
    def settings(self) -> Mapping[str, Any]:
        """As in :class:`~megatron_grow.data.datasets.SampleKind`."""
        return {
            "index": "masked, version 1",
            "seq_length": self.seq_length,
            "seed": self.seed,
            "pairs": self.pairs,
            "short_seq_prob": self.options.short_seq_prob,
        }

    def index(self, corpus: Corpus, documents: tuple[int, int]) -> Arrays:
        """The corpus in units, and the runs of them that are samples: as in ``SampleKind``.

        Raises:
            UserError: there is not one sample, or no other document for the second segment.
        """
        units = units_of(corpus, documents, longest_unit(self.pairs, self.room))
        if self.pairs == "next_sentence" and len(units.firsts) < 2:
            raise UserError(
                f"{corpus.prefix} has text in {len(units.firsts)} documents of this part, and the "
                "second sentence of a pair must be able to come from another one: use more of it"
            )
        samples = chunk(
            units,
            self.pairs,
            self.room,
            short_seq_prob=self.options.short_seq_prob,
            seed=self.seed,
        )
        if not len(samples):
            raise UserError(f"{corpus.prefix} has no text of which samples can be made")
        return {"samples": samples, "begins": units.begins, "left": units.left}

    def samples(self, corpus: Corpus, index: Index, vocab_size: int) -> Dataset:
        """As in :class:`~megatron_grow.data.datasets.SampleKind`."""
        return MaskedSamples(corpus, index, self, vocab_size)


class MaskedSamples(Dataset):
    """Samples ``[CLS] A [SEP] B [SEP]``, or ``[CLS] A [SEP]``, some of whose tokens are masked.

    Every epoch has all sentences of the corpus, in another order of samples, under other masks,
    with pairs that are divided, swapped or completed otherwise. Sample number k is the same however
    many are asked for, and whoever asks.

    Args:
        corpus: Of sentences.
        index: The arrays of :meth:`MaskedText.index`.
        kind: What samples are like.
        vocab_size: Token ids that the model knows.
    """

    def __init__(self, corpus: Corpus, index: Index, kind: MaskedText, vocab_size: int) -> None:
        self._corpus, self._index, self._kind = corpus, index, kind
        self._vocab_size = vocab_size
        self._epochs = Epochs(len(index["samples"]), kind.seed)

    @property
    def samples_per_epoch(self) -> int:
        """Samples that have all sentences once."""
        return self._epochs.size

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Sample ``number``, any from 0; s is its length, P its most masked positions.

        Returns:
            ``tokens`` and ``token_types`` (1 for B), (s,) int64; ``padding_mask``, (s,) bool, True
            for padding; ``masked_positions``, ascending, and ``masked_labels``, (P,) int64, and
            ``masked_weights``, (P,) float32, 0 for slots not used, whose position is 0; of pairs
            ``is_next``, () int64, 0 where B follows A in its document and 1 where it does not.

        Raises:
            UserError: a token id outside the vocabulary; a file that was cut since it was opened.
        """
        kind = self._kind
        row = self._epochs.sample(number)
        random = np.random.Generator(np.random.PCG64([kind.seed, int(number)]))
        segments, label = self._segments(self._index["samples"].read(row, row + 1)[0], random)
        text = read_text(self._corpus, segments, self._vocab_size)
        edges = np.cumsum([0, *(end - begin for begin, end in segments)]).tolist()
        sample = _framed(text, edges, kind)
        limit = kind.options.most_masked(len(text) + FRAME[kind.pairs])
        masked = mask(text, edges[:-1], limit, random, kind.tokens, kind.options)
        # A token of segment n comes after n + 1 special ones.
        positions = masked.positions + np.searchsorted(edges[:-1], masked.positions, "right")
        sample["tokens"][positions] = masked.replacements
        slots = kind.options.most_masked(kind.seq_length)
        for name, values, dtype in (
            ("masked_positions", positions, np.int64),
            ("masked_labels", text[masked.positions], np.int64),
            ("masked_weights", 1, np.float32),
        ):
            sample[name] = np.zeros(slots, dtype=dtype)
            sample[name][: len(positions)] = values
        if kind.pairs != "none":
            sample["is_next"] = np.array(label)
        return {name: torch.from_numpy(values) for name, values in sample.items()}

    def _segments(self, row: np.ndarray, random: np.random.Generator) -> tuple[list[Span], int]:
        """Where the segments lie, and what is to be predicted of a pair."""
        first, count, target, document = row.tolist()
        begins = self._index["begins"].read(first, first + count + 1).tolist()
        whole = begins[0], begins[-1]
        if self._kind.pairs == "none":
            return [whole], 0
        if target:
            return [whole, self._elsewhere(first, document, whole, target, random)], 1
        middle = (whole[0] + whole[1]) // 2
        if count > 1:
            middle = begins[1 + int(random.random() * (count - 1))]
        pair = [(whole[0], middle), (middle, whole[1])]
        if self._kind.pairs == "sentence_order" and random.random() < 0.5:
            return pair[::-1], 1
        return pair, 0

    def _elsewhere(
        self, first: int, document: int, segment: Span, target: int, random: np.random.Generator
    ) -> Span:
        """Sentences of another document than that of ``segment``, from a random one on.

        As many as fit into ``target`` tokens with the segment; the first in any case, as much of it
        as a sample has room for.
        """
        left, begins = self._index["left"], self._index["begins"]
        own = first - document + int(left.read(first, first + 1)[0])
        start = int(random.random() * (len(left) - own))
        if start >= document:
            start += own
        taken = segment[1] - segment[0]
        most = min(int(left.read(start, start + 1)[0]), max(1, target - taken))
        found = begins.read(start, start + most + 1)
        count = int(np.searchsorted(found, found[0] + target - taken, "right")) - 1
        begin = int(found[0])
        return begin, min(int(found[max(1, count)]), begin + self._kind.room - taken)


def _framed(text: np.ndarray, edges: list[int], kind: MaskedText) -> dict[str, np.ndarray]:
    """The segments of ``text``, between special tokens and filled up."""
    tokens = np.full(kind.seq_length, kind.tokens.pad)
    types = np.zeros(kind.seq_length, dtype=np.int64)
    padding = np.ones(kind.seq_length, dtype=bool)
    tokens[0], place = kind.tokens.cls, 1
    for number, (begin, end) in enumerate(pairwise(edges)):
        after = place + end - begin
        tokens[place:after] = text[begin:end]
        tokens[after] = kind.tokens.sep
        types[place : after + 1] = number
        place = after + 1
    padding[:place] = False
    return {"tokens": tokens, "token_types": types, "padding_mask": padding}
