"""Which sentences a masked sample holds: all of a document's, in order, each in one sample."""

from __future__ import annotations

from typing import Literal

import numpy as np

from megatron_grow.data.masked.units import Units

Pairs = Literal["next_sentence", "sentence_order", "none"]
"""What a sample's two segments are asked about; ``none``: it has one."""
FRAME = {"next_sentence": 3, "sentence_order": 3, "none": 2}
"""Special tokens of a sample."""


def longest_unit(pairs: Pairs, room: int) -> int:
    """Tokens of a unit, at most, where a sample has ``room`` tokens of text.

    Two units fit into a pair, so that none is ever cut a second time.
    """
    return room if pairs == "none" else room // 2


def chunk(units: Units, pairs: Pairs, room: int, *, short_seq_prob: float, seed: int) -> np.ndarray:
    """Cut every document into runs of sentences, a sample each, in an order that ``seed`` decides.

    As BERT's create_pretraining_data does, but that a run ends before a sentence that does not fit,
    where BERT's takes it and cuts tokens off both ends until the pair fits; and a pair begins with
    two sentences, however short it is to be. What BERT leaves of a run whose second segment comes
    from elsewhere begins the next run, here as well.

    Args:
        units: Of :func:`longest_unit` tokens at most.
        pairs: What samples are for.
        room: Tokens of text in a sample, at most.
        short_seq_prob: Share of samples that are filled to a length drawn from 2 to ``room``.
        seed: Decides all that is drawn.

    Returns:
        (samples, 4) int64: the first unit; how many follow each other from it; the length to fill
        with text from another document after them, theirs included, or 0 for none; the first unit
        of their document.
    """
    random = np.random.RandomState(seed)  # whose stream numpy promises not to change
    size = len(units.left)
    target = np.full(size, room)
    short = random.random_sample(size) < short_seq_prob
    target[short] = 2 + (random.random_sample(size)[short] * (room - 1)).astype(np.int64)
    here = np.arange(size)
    fitting = np.searchsorted(units.begins, units.begins[:-1] + target, "right") - 1 - here
    least = 1 if pairs == "none" else 2
    count = np.minimum(np.maximum(fitting, least), units.left)
    follows = np.zeros(size, dtype=np.int64)
    if pairs == "next_sentence":
        elsewhere = (random.random_sample(size) < 0.5) | (count == 1)
        several = elsewhere & (count > 1)
        part = 1 + (random.random_sample(size) * (count - 1)).astype(np.int64)
        count = np.where(several, part, count)
        follows = np.where(elsewhere, target, 0)
    first, document = _walk(units, count)
    if pairs == "sentence_order":  # one token cannot be two segments
        tokens = units.begins[first + count[first]] - units.begins[first]
        first, document = first[tokens > 1], document[tokens > 1]
    samples = np.stack([first, count[first], follows[first], document], axis=1)
    random.shuffle(samples)
    return samples


def _walk(units: Units, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs begin if each begins where the last ends; and the first units of their documents.

    A step is one for all documents at a time.
    """
    at = document = units.firsts
    found = [(at[:0], at[:0])]
    while at.size:
        found.append((at, document))
        steps = count[at]
        goes_on = steps < units.left[at]
        at, document = (at + steps)[goes_on], document[goes_on]
    first, document = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return first, document
