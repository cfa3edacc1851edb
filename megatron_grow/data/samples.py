"""Samples of corpora by number: what they hold and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from megatron.core.datasets import helpers
from torch.utils.data import Dataset

from megatron_grow.data.cache import Arrays
from megatron_grow.data.epochs import Epochs
from megatron_grow.data.files import FileArray
from megatron_grow.data.indexed import Corpus
from megatron_grow.data.reading import read_text

Index = Mapping[str, FileArray]


class CorpusSamples(Dataset):
    """Samples of ``seq_length`` tokens from consecutive documents of a corpus, without end.

    Epoch 0 has Megatron's order (:func:`order_corpus`), and each later epoch another one
    (:class:`~megatron_grow.data.epochs.Epochs`). Megatron shuffles all epochs that a run needs
    together, so that a longer run sees other samples from the first step on; here sample number k
    is the same however many are asked for.

    Args:
        corpus: Where the tokens are.
        index: The arrays of :func:`order_corpus`.
        seq_length: Tokens in a sample.
        seed: Of the later epochs' order.
        vocab_size: Token ids that the model knows.
    """

    def __init__(
        self, corpus: Corpus, index: Index, *, seq_length: int, seed: int, vocab_size: int
    ) -> None:
        self._corpus, self._index = corpus, index
        self._epochs, self._vocab_size = Epochs(len(index["bounds"]) - 1, seed), vocab_size
        self._fields = {
            "loss_mask": torch.ones(seq_length),
            "position_ids": torch.arange(seq_length),
        }

    @property
    def samples_per_epoch(self) -> int:
        """Samples after which the corpus begins again; tokens left over are dropped."""
        return self._epochs.size

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Sample ``number``, any from 0.

        Returns:
            ``tokens``, ``labels`` (the next tokens) and ``position_ids``, (seq_length,) int64, and
            ``loss_mask``, (seq_length,) float32.

        Raises:
            UserError: a token id outside the vocabulary; a file that was cut since it was opened.
        """
        position = self._epochs.sample(number)
        bounds, spans = self._index["bounds"], self._index["spans"]
        pieces = spans.read(*bounds.read(position, position + 2).tolist()).tolist()
        sample = torch.from_numpy(read_text(self._corpus, pieces, self._vocab_size))
        return {"tokens": sample[:-1], "labels": sample[1:], **self._fields}


def order_corpus(
    corpus: Corpus, documents: tuple[int, int], *, seq_length: int, seed: int
) -> dict[str, np.ndarray]:
    """One epoch of documents ``documents[0]`` to ``documents[1]`` in the order of Megatron-LM.

    Documents are shuffled, joined end to end, cut into samples that share a token at their ends,
    and the samples are shuffled.

    Returns:
        ``spans`` (spans, 2) int64: where the text of the samples begins and ends in the corpus,
        document by document, one sample after another; ``bounds`` (samples + 1,) int64: the first
        span of each sample, and their number.
    """
    random = np.random.RandomState(seed)
    shuffled = np.arange(*documents, dtype=np.int32)
    random.shuffle(shuffled)
    lengths = corpus.lengths.read(0, len(corpus.lengths))
    ends = np.cumsum(lengths, dtype=np.int64)
    begins = (ends - lengths)[shuffled]
    ends = ends[shuffled]
    tokens = int(lengths[slice(*documents)].sum(dtype=np.int64))
    # (samples + 1, 2): a document of ``shuffled`` and the tokens of it that samples before have.
    cuts = helpers.build_sample_idx(lengths, shuffled, seq_length, 1, tokens)
    order = np.arange(len(cuts) - 1, dtype=np.uint32)
    random.shuffle(order)
    (first, skipped), (last, taken) = cuts[order].T, cuts[order + 1].T
    bounds = np.concatenate([[0], np.cumsum(last - first + 1, dtype=np.int64)])
    parts = np.arange(bounds[-1]) + np.repeat(first - bounds[:-1], np.diff(bounds))
    spans = np.stack([begins[parts], ends[parts]], axis=1)
    spans[bounds[1:] - 1, 1] = begins[last] + taken + 1  # with the label of the last token
    spans[bounds[:-1], 0] += skipped
    return {"spans": spans, "bounds": bounds}


@dataclass(frozen=True)
class RunningText:
    """Samples of ``seq_length`` tokens, in an order that ``seed`` decides."""

    seq_length: int
    seed: int

    @property
    def settings(self) -> Mapping[str, Any]:
        """As in :class:`~megatron_grow.data.datasets.SampleKind`."""
        return {"index": "corpus, version 1", **asdict(self)}

    def index(self, corpus: Corpus, documents: tuple[int, int]) -> Arrays:
        """As in :class:`~megatron_grow.data.datasets.SampleKind`."""
        return order_corpus(corpus, documents, seq_length=self.seq_length, seed=self.seed)

    def samples(self, corpus: Corpus, index: Index, vocab_size: int) -> Dataset:
        """As in :class:`~megatron_grow.data.datasets.SampleKind`."""
        return CorpusSamples(
            corpus, index, seq_length=self.seq_length, seed=self.seed, vocab_size=vocab_size
        )


class BlendedSamples(Dataset):
    """Samples of several datasets, each in order.

    Args:
        datasets: What is blended.
        index: The arrays of :func:`order_blend`.
    """

    def __init__(self, datasets: Sequence[Dataset], index: Index) -> None:
        self._datasets, self._index = datasets, index

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Sample ``number``, any from 0 to the length of the index."""
        source, position = (
            int(self._index[name].read(number, number + 1)[0]) for name in ("source", "position")
        )
        return self._datasets[source][position]


def order_blend(weights: Sequence[float], samples: int) -> dict[str, np.ndarray]:
    """Megatron-LM's blend: after any number of samples each dataset is nearest to its share.

    Args:
        weights: Shares that add up to 1, (datasets,).
        samples: How many are ordered; the first are the same for any number.

    Returns:
        ``source``, the dataset of each sample, (samples,) int16; ``position``, which of that
        dataset's samples it is, (samples,) int64.
    """
    source, position = np.zeros(samples, dtype=np.int16), np.zeros(samples, dtype=np.int64)
    helpers.build_blending_indices(
        source, position, np.asarray(weights), len(weights), samples, False
    )
    return {"source": source, "position": position}
