"""Which tokens are masked and what stands in their place: shares, whole words, spans."""

from __future__ import annotations

import math
from collections import Counter
from itertools import groupby

import numpy as np
import pytest

from megatron_grow.data.masked.choice import Masked, mask
from megatron_grow.data.masked.options import MaskedOptions
from tests.data.masked.sentences import FIRST, MASK, special_tokens

WORDS = np.random.RandomState(5).randint(1, 4, 400)
"""Tokens of each word."""
WORD_OF = np.repeat(np.arange(400), WORDS)
TEXT = FIRST + np.arange(len(WORD_OF))
CONTINUES = [
    int(t) for t, before in zip(TEXT[1:], WORD_OF[:-1], strict=True) if WORD_OF[t - FIRST] == before
]


def masked(number: int, limit: int, segments: tuple[int, ...] = (0,), **options: object) -> Masked:
    random = np.random.Generator(np.random.PCG64([1, number]))
    tokens = special_tokens(CONTINUES)
    return mask(TEXT, list(segments), limit, random, tokens, MaskedOptions(**options))


def within(count: int, total: int, share: float) -> bool:
    """Within four standard deviations of a binomial distribution."""
    return abs(count - share * total) <= 4 * math.sqrt(share * (1 - share) * total)


@pytest.mark.parametrize("masking", ["token", "whole_word"])
@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.5, 0.5), (1.0, 0.0), (0.0, 0.3)])
def test_shares_of_replacements(masking, shares):
    options = {"masking": masking, "mask_token_prob": shares[0], "random_token_prob": shares[1]}
    kinds: Counter[str] = Counter()
    drawn = []
    for number in range(200):
        found = masked(number, 100, **options)
        for position, token in zip(*found, strict=True):
            kind = "mask" if token == MASK else "kept" if token == TEXT[position] else "random"
            kinds[kind] += 1
            drawn += [int(token)] if kind == "random" else []
    total = kinds.total()
    assert within(kinds["mask"], total, shares[0])
    assert within(kinds["random"], total, shares[1])
    kept = 1 - sum(shares)
    assert within(kinds["kept"], total, kept + shares[1] / 59_995)  # drawn as it is
    assert all(token >= FIRST for token in drawn)  # never a special one
    if drawn:  # of all others alike
        middle = (FIRST + 60_000) / 2
        assert abs(np.mean(drawn) - middle) < 4 * 60_000 / math.sqrt(12 * len(drawn))


def test_every_token_is_as_likely():
    count = np.zeros(len(TEXT))
    for number in range(1000):
        found = masked(number, 120)
        assert len(found.positions) == 120 and (np.diff(found.positions) > 0).all()
        count[found.positions] += 1
    share = 120 / len(TEXT)
    deviation = math.sqrt(share * (1 - share) * 1000)
    assert abs(count - 1000 * share).max() < 5 * deviation
    assert abs(count.var() / deviation**2 - 1) < 0.25  # and no less random than that


def test_whole_words():
    """Words are masked as a whole, and as many as fit."""
    count = np.zeros(400)
    for number in range(300):
        chosen = Counter(WORD_OF[masked(number, 100, masking="whole_word").positions].tolist())
        assert all(WORDS[word] == found for word, found in chosen.items())
        assert 98 <= chosen.total() <= 100
        count[list(chosen)] += 1
    assert count.min() > 0


@pytest.mark.parametrize("masking", ["whole_word", "span"])
def test_a_word_longer_than_the_limit(masking):
    """A text always has a masked token: the beginning of a word, if no whole one fits."""
    random = np.random.Generator(np.random.PCG64(1))
    tokens = special_tokens(range(FIRST + 1, FIRST + 30))
    options = MaskedOptions(masking=masking)
    found = mask(FIRST + np.arange(30), [0], 4, random, tokens, options)
    assert found.positions.tolist() == [0, 1, 2, 3]


def test_a_segment_begins_a_word():
    """What goes on with a word is a word of its own where a segment begins."""
    random = np.random.Generator(np.random.PCG64(1))
    tokens = special_tokens(range(FIRST, FIRST + 8))
    options = MaskedOptions(masking="whole_word")
    found = {
        tuple(mask(FIRST + np.arange(8), [0, 5], 5, random, tokens, options).positions.tolist())
        for _ in range(50)
    }
    assert found == {(0, 1, 2, 3, 4), (5, 6, 7)}


def test_lengths_of_spans():
    """SpanBERT's: geometric with p = 0.2, at most 10 words, 3.8 on average.

    Few are masked, so that spans seldom touch; those that do not fit any more are short of the
    mean, which the bounds allow for.
    """
    lengths: Counter[int] = Counter()
    for number in range(2000):
        words = sorted(set(WORD_OF[masked(number, 40, masking="span").positions].tolist()))
        runs = groupby(enumerate(words), lambda entry: entry[1] - entry[0])
        lengths.update(len(list(run)) for _, run in runs)
    weights = [0.8**k for k in range(10)]
    expected = [weight / sum(weights) for weight in weights]
    total = lengths.total()
    for length in range(1, 6):
        assert abs(lengths[length] / total - expected[length - 1]) < 0.025
    mean = sum(length * count for length, count in lengths.items()) / total
    assert abs(mean - sum((k + 1) * share for k, share in enumerate(expected))) < 0.3


def test_the_longest_span():
    """If it is a word, words that touch are a chance of about 1 in 20."""
    runs = together = 0
    for number in range(100):
        positions = masked(number, 40, masking="span", longest_span=1).positions
        words = sorted(set(WORD_OF[positions].tolist()))
        runs += len(words)
        together += int((np.diff(words) == 1).sum())
    assert together < 0.1 * runs


def test_each_word_can_be_a_span():
    """The last of a text, too; none is longer than what is left of it."""
    random = np.random.Generator(np.random.PCG64(1))
    options = MaskedOptions(masking="span", longest_span=1)
    found = {
        tuple(mask(FIRST + np.arange(3), [0], 1, random, special_tokens(), options).positions)
        for _ in range(50)
    }
    assert found == {(0,), (1,), (2,)}


def test_spans_are_of_whole_words_and_stay_in_a_segment():
    for number in range(100):
        chosen = Counter(WORD_OF[masked(number, 100, masking="span").positions].tolist())
        assert all(WORDS[word] == found for word, found in chosen.items())
        assert 98 <= chosen.total() <= 100  # cut to the words that fit
    middle = len(TEXT) // 2
    options = {
        "masking": "span",
        "longest_span": 10**6,
        "span_prob": 1e-6,
    }  # all longer than the text
    found = [masked(number, middle, (0, middle), **options).positions for number in range(20)]
    assert {tuple(np.unique(positions >= middle)) for positions in found} == {(False,), (True,)}


def test_a_span_is_replaced_as_one():
    """Here the whole text is one."""
    options = {"mask_token_prob": 0.5, "random_token_prob": 0.5, "span_prob": 1e-6}
    shares = []
    for number in range(40):
        found = masked(number, len(TEXT), masking="span", longest_span=10**6, **options)
        assert len(found.positions) == len(TEXT)
        shares.append(float((found.replacements == MASK).mean()))
    assert set(shares) == {0.0, 1.0}
