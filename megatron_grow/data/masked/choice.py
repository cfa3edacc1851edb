"""Which tokens of a sample are masked, and what stands in their place."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from megatron_grow.data.masked.options import MaskedOptions
from megatron_grow.data.tokenizers.masking import MaskingTokens

Random = np.random.Generator
"""Asked for uniform numbers only, whose algorithm has never changed."""


class Masked(NamedTuple):
    """The masked tokens of a text."""

    positions: np.ndarray
    """Ascending, int64."""
    replacements: np.ndarray
    """What is read in their place, int64."""


def mask(
    text: np.ndarray,
    segments: list[int],
    limit: int,
    random: Random,
    tokens: MaskingTokens,
    options: MaskedOptions,
) -> Masked:
    """Choose and replace tokens of a text.

    Args:
        text: Token ids, none of which is special, (tokens,) int64.
        segments: Where each segment begins in it.
        limit: Tokens to mask, at least 1.
        random: Decides.
        tokens: Of the tokenizer.
        options: How.
    """
    words = np.ones(len(text), dtype=bool)
    if options.masking != "token":
        assert tokens.continues is not None, "check_data refuses such a tokenizer"
        words = ~tokens.continues[text]
        words[segments] = True
    if options.masking == "span":
        begins = _spans(words, segments, random, options)
        chosen = _whole_and_a_part(begins, words, limit, random)
    else:
        begins = words
        chosen = _whole(begins, limit, random)
    positions = np.flatnonzero(chosen)
    if options.masking == "span":  # replaced as one, as in SpanBERT
        span = np.cumsum(begins)[positions] - 1
        draw = random.random(np.count_nonzero(begins))[span]
    else:
        draw = random.random(len(positions))
    drawn = random.random(len(positions)) * len(tokens.ordinary)
    others = tokens.ordinary[drawn.astype(np.int64)]
    replacements = np.where(
        draw < options.mask_token_prob + options.random_token_prob, others, text[positions]
    )
    replacements[draw < options.mask_token_prob] = tokens.mask
    return Masked(positions, replacements)


def _spans(
    words: np.ndarray, segments: list[int], random: Random, options: MaskedOptions
) -> np.ndarray:
    """Where spans begin that make up all words, (tokens,) bool.

    Their lengths are geometric, cut off above the longest; that of a segment's last is what is left
    of the segment.
    """
    lengths = np.arange(options.longest_span)
    shares = np.cumsum((1 - options.span_prob) ** lengths)
    starts = np.flatnonzero(words)
    begins = np.zeros(len(words), dtype=bool)
    edges = np.searchsorted(starts, [*segments, len(words)]).tolist()
    for first, last in pairwise(edges):
        drawn = 1 + np.searchsorted(shares, random.random(last - first) * shares[-1], "right")
        heads = np.concatenate([[0], np.cumsum(drawn)])
        begins[starts[first + heads[heads < last - first]]] = True
    return begins


def _whole_and_a_part(
    begins: np.ndarray, words: np.ndarray, limit: int, random: Random
) -> np.ndarray:
    """Spans in random order until ``limit`` tokens are reached, (tokens,) bool.

    The last is cut to the words that fit, as in SpanBERT: to look for one that fits would favour
    short ones.
    """
    starts, lengths, order = _shuffled(begins, random)
    ends = np.cumsum(lengths[order])
    taken = int(np.searchsorted(ends, limit, "right"))
    chosen = np.zeros(len(lengths), dtype=bool)
    chosen[order[:taken]] = True
    tokens = np.repeat(chosen, lengths)
    if taken < len(order):
        start = int(starts[order[taken]])
        rest = limit - (int(ends[taken - 1]) if taken else 0)
        fits = np.flatnonzero(words[start + 1 : start + rest + 1])
        whole = 1 + int(fits[-1]) if len(fits) else 0
        tokens[start : start + (whole if whole or taken else limit)] = True
    return tokens


def _whole(begins: np.ndarray, limit: int, random: Random) -> np.ndarray:
    """Words in random order, of each that still fits into ``limit`` tokens, (tokens,) bool.

    If every one is longer, the beginning of one: each text has a masked token.
    """
    starts, lengths, order = _shuffled(begins, random)
    chosen = np.zeros(len(lengths), dtype=bool)
    first, left = int(starts[order[0]]), limit
    while left and len(order := order[lengths[order] <= left]):
        ends = np.cumsum(lengths[order])
        taken = int(np.searchsorted(ends, left, "right"))
        chosen[order[:taken]] = True
        left -= int(ends[taken - 1])
        order = order[taken:]
    tokens = np.repeat(chosen, lengths)
    if left == limit:
        tokens[first : first + limit] = True
    return tokens


def _shuffled(begins: np.ndarray, random: Random) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where units begin, their lengths, and their numbers in random order."""
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=len(begins))
    return starts, lengths, random.random(len(starts)).argsort()
