"""Sentences as masked samples take them: each whole, or in pieces where it is long."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from megatron_grow.data.indexed import Corpus


class Units(NamedTuple):
    """The sentences of consecutive documents; a long one is several units of about one length."""

    begins: np.ndarray
    """Where each begins in the corpus, and where the last ends, (units + 1,) int64."""
    left: np.ndarray
    """Units from each to the end of its document, itself counted, (units,) int32."""
    firsts: np.ndarray
    """First unit of each document that has any, int64."""


def units_of(corpus: Corpus, documents: tuple[int, int], longest: int) -> Units:
    """The units of documents ``documents[0]`` to ``documents[1]``, of ``longest`` tokens at most.

    Sentences without tokens are left out.
    """
    first, last = documents
    bounds = corpus.document_bounds()[first : last + 1]
    lengths = corpus.lengths.read(int(bounds[0]), int(bounds[-1])).astype(np.int64)
    pieces = -(-lengths // longest)
    before = np.concatenate([[0], np.cumsum(pieces)])
    sentence = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(before[-1]) - before[sentence]
    ends = corpus.begin(int(bounds[0])) + np.cumsum(lengths)
    begins = (ends - lengths)[sentence] + lengths[sentence] * number // pieces[sentence]
    edges = before[bounds - bounds[0]]
    sizes = np.diff(edges)
    left = np.repeat(edges[1:], sizes) - np.arange(before[-1])
    return Units(
        np.append(begins, corpus.begin(int(bounds[-1]))),
        left.astype(np.int32),
        edges[:-1][sizes > 0],
    )
