"""Masked samples: what they hold, which pairs they make, and that an epoch has the whole corpus."""

from __future__ import annotations

import math
from collections import Counter
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch

from megatron_grow.inputs.errors import UserError
from tests.data.masked.sentences import CLS, FIRST, MASK, PAD, SEP, make_samples, segments, whole

RANDOM = np.random.RandomState(3)
USUAL = [[int(n) for n in RANDOM.randint(1, 15, size)] for size in RANDOM.randint(2, 30, 60)]
CORPORA = {
    "usual": USUAL,
    "sentences longer than a sample": [[200, 3, 90], [4, 150], [75]],
    "documents of one sentence": [[9], [30], [2], [1], [64]],
    "sentences without tokens": [[5, 0, 4], [0, 6, 0], [0, 0], [7, 7]],
    "sentences of one token": [[1] * 50, [1] * 3, [1, 1]],
}
PAIRS = ["next_sentence", "sentence_order", "none"]


def edges(documents: list[list[int]]) -> list[tuple[int, int]]:
    """Where each document with tokens begins and ends."""
    found = pairwise([0, *accumulate(map(sum, documents))])
    return [(begin, end) for begin, end in found if begin < end]


def test_a_small_corpus_in_full(tmp_path):
    """By hand: 9 tokens of text; a document that fits is a sample, and none goes on in another."""
    options = {"short_seq_prob": 0.0, "masked_lm_prob": 0.2}
    documents = [[3, 2, 4], [10], [2, 5, 4]]
    samples = make_samples(tmp_path, documents, 11, "none", **options)
    assert samples.samples_per_epoch == 5
    found = {tuple(whole(samples[number])) for number in range(5)}
    texts = [range(9), range(9, 14), range(14, 19), range(19, 26), range(26, 30)]
    # the sentence of 10 tokens in two pieces of 5; 2 + 5 + 4 tokens are more than 9
    assert found == {(CLS, *(FIRST + place for place in text), SEP) for text in texts}
    for number in range(5):
        sample = samples[number]
        assert list(sample) == [
            "tokens",
            "token_types",
            "padding_mask",
            "masked_positions",
            "masked_labels",
            "masked_weights",
        ]
        length = len(whole(sample))
        assert sample["tokens"].tolist()[length:] == [PAD] * (11 - length)
        assert sample["padding_mask"].tolist() == [False] * length + [True] * (11 - length)
        assert sample["token_types"].tolist() == [0] * 11
        # round(0.2 * 11) = 2 slots; a sample of 11 or 9 tokens has 2 masked, of 7 or 6 one
        assert sample["masked_weights"].tolist() == [1.0, float(length > 7)]
        assert sample["masked_positions"].tolist()[1:] == [0] or length > 7


def test_fields_of_a_pair(tmp_path):
    samples = make_samples(
        tmp_path, USUAL, 64, "next_sentence", mask_token_prob=1, random_token_prob=0
    )
    for number in range(50):
        sample = samples[number]
        kinds = {name: (tuple(value.shape), value.dtype) for name, value in sample.items()}
        assert kinds == {
            "tokens": ((64,), torch.int64),
            "token_types": ((64,), torch.int64),
            "padding_mask": ((64,), torch.bool),
            "masked_positions": ((10,), torch.int64),  # 0.15 * 64 = 9.6
            "masked_labels": ((10,), torch.int64),
            "masked_weights": ((10,), torch.float32),
            "is_next": ((), torch.int64),
        }
        first, second = segments(sample)
        types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        assert sample["token_types"].tolist() == types + [0] * (64 - len(types))
        used = int(sample["masked_weights"].sum())
        assert used == min(10, max(1, round(0.15 * len(types))))
        assert sample["masked_weights"].tolist() == [1.0] * used + [0.0] * (10 - used)
        positions = sample["masked_positions"].tolist()
        assert positions[:used] == sorted(set(positions[:used])) and not any(positions[used:])
        assert [k for k, t in enumerate(sample["tokens"].tolist()) if t == MASK] == positions[:used]
        assert not any(sample["masked_labels"].tolist()[used:])


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("name", CORPORA)
def test_an_epoch_has_every_token_once(tmp_path, name, pairs):
    """But for those of a random second segment, and lone tokens where a pair is to be swapped."""
    documents = CORPORA[name]
    samples = make_samples(tmp_path, documents, 64, pairs)
    for epoch in (0, 1, 3):
        seen: Counter[int] = Counter()
        for number in range(samples.samples_per_epoch):
            sample = samples[epoch * samples.samples_per_epoch + number]
            parts = segments(sample)
            if pairs == "next_sentence" and sample["is_next"] == 1:
                parts = parts[:1]
            seen.update(place for part in parts for place in part)
        assert set(seen.values()) == {1}
        missing = set(range(sum(map(sum, documents)))) - set(seen)
        if pairs == "sentence_order":  # the last token of a document
            missing -= {end - 1 for _, end in edges(documents)}
        assert not missing


@pytest.mark.parametrize("name", CORPORA)
def test_pairs_for_the_next_sentence(tmp_path, name):
    """B goes on where A ends, or stands in another document and begins with a sentence."""
    documents = CORPORA[name]
    samples = make_samples(tmp_path, documents, 64, "next_sentence")
    where = {place: span for span in edges(documents) for place in range(*span)}
    begins = {0, *accumulate(length for document in documents for length in document)}
    long = max(length for document in documents for length in document) > 30
    for number in range(2 * samples.samples_per_epoch):
        sample = samples[number]
        first, second = segments(sample)
        assert first and second and len(first) + len(second) <= 61
        assert first == list(range(first[0], first[-1] + 1))
        assert second == list(range(second[0], second[-1] + 1))
        assert where[first[0]] == where[first[-1]] and where[second[0]] == where[second[-1]]
        if sample["is_next"] == 0:
            assert second[0] == first[-1] + 1 and where[second[0]] == where[first[0]]
        else:
            assert where[second[0]] != where[first[0]]
        if not long:  # a sentence of more than 30 tokens is cut into pieces
            assert {first[0], first[-1] + 1, second[0]} <= begins


def test_pairs_fill_the_sample_and_divide_anywhere(tmp_path):
    """Sentences of one token fill all 13 places, but where a document ends."""
    documents = [[1] * 50] * 100
    ends = {end for _, end in edges(documents)}
    samples = make_samples(tmp_path, documents, 16, "next_sentence", short_seq_prob=0)
    lengths: dict[int, set[int]] = {0: set(), 1: set()}
    for number in range(samples.samples_per_epoch):
        first, second = segments(samples[number])
        assert len(first) + len(second) == 13 or second[-1] + 1 in ends
        lengths[int(samples[number]["is_next"])].add(len(first))
    assert lengths[0] == set(range(1, 13)) == lengths[1]


def test_half_of_the_pairs_are_random(tmp_path):
    """Of those that have a choice: what is left at the end of a document has none."""
    samples = make_samples(tmp_path, USUAL * 5, 64, "next_sentence")
    ends = {end for _, end in edges(USUAL * 5)}
    labels = []
    for number in range(samples.samples_per_epoch):
        sample = samples[number]
        if segments(sample)[0][-1] + 1 not in ends:
            labels.append(int(sample["is_next"]))
        else:
            assert sample["is_next"] == 1
    assert len(labels) > 1000
    assert abs(sum(labels) / len(labels) - 0.5) < 4 * 0.5 / math.sqrt(len(labels))


def test_random_sentences_come_from_everywhere(tmp_path):
    """Every sentence of another document begins a random B equally often: chi-square by hand."""
    documents = [[4] * 10] * 10
    samples = make_samples(tmp_path, documents, 32, "next_sentence")
    begins: Counter[int] = Counter()
    for number in range(100 * samples.samples_per_epoch):
        sample = samples[number]
        if sample["is_next"] == 1:
            begins[segments(sample)[1][0]] += 1
    assert set(begins) == set(range(0, 400, 4))
    mean = sum(begins.values()) / 100
    square = sum((count - mean) ** 2 for count in begins.values()) / mean
    assert abs(square - 99) < 4 * math.sqrt(2 * 99)


def test_sentence_order_swaps_half(tmp_path):
    samples = make_samples(tmp_path, USUAL * 5, 64, "sentence_order")
    labels = []
    for number in range(samples.samples_per_epoch):
        sample = samples[number]
        first, second = segments(sample)
        if sample["is_next"] == 1:
            first, second = second, first
        assert second == list(range(first[-1] + 1, second[-1] + 1))
        labels.append(int(sample["is_next"]))
    assert abs(sum(labels) / len(labels) - 0.5) < 4 * 0.5 / math.sqrt(len(labels))


def test_short_sequences(tmp_path):
    """A tenth is filled to a length from 2 to the whole; sentences of one token show it exactly."""
    samples = make_samples(tmp_path, [[1] * 50_000], 66, "none", short_seq_prob=0.1)
    lengths = [len(whole(samples[number])) - 2 for number in range(2000)]
    short = [length for length in lengths if length < 64]
    share = 0.1 * 62 / 63  # a drawn length may be the whole
    assert abs(len(short) / 2000 - share) < 4 * math.sqrt(share * (1 - share) / 2000)
    assert min(short) == 2
    assert abs(np.mean(short) - 32.5) < 4 * 62 / math.sqrt(12 * len(short))  # of 2 to 63
    assert {len(whole(s)) for s in map(samples.__getitem__, range(3))} <= set(range(4, 67))


def test_a_short_pair_has_two_sentences(tmp_path):
    """Though they are longer; one is cut only where it is left over at the end of a document."""
    samples = make_samples(tmp_path, [[10] * 4] * 50, 64, "sentence_order", short_seq_prob=1.0)
    lengths = Counter()
    for number in range(samples.samples_per_epoch):
        first, second = sorted(segments(samples[number]))
        lengths[len(first) + len(second)] += 1
        assert len(first) % 10 == len(second) % 10 == 0 or (second[-1] + 1) % 40 == 0
    assert lengths[20] > lengths[30] == lengths[10] > 0


@pytest.mark.parametrize(("pairs", "shortest"), [*zip(PAIRS, (5, 5, 4), strict=True)])
def test_the_shortest_samples(tmp_path, pairs, shortest):
    """Two tokens of text, whole or filled to a length drawn at random."""
    samples = make_samples(tmp_path, USUAL, shortest, pairs, short_seq_prob=0.5)
    for number in range(samples.samples_per_epoch):
        lengths = [*map(len, segments(samples[number]))]
        assert lengths == [1, 1] if pairs != "none" else lengths in ([1], [2])


def test_epochs_have_other_masks_pairs_and_orders(tmp_path):
    samples = make_samples(tmp_path, USUAL, 64, "next_sentence")
    size = samples.samples_per_epoch
    epochs = [[samples[epoch * size + number] for number in range(size)] for epoch in range(2)]
    orders = [[segments(sample)[0][0] for sample in epoch] for epoch in epochs]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    by_text = [{segments(sample)[0][0]: sample for sample in epoch} for epoch in epochs]
    same = [
        torch.equal(one["masked_positions"], by_text[1][begin]["masked_positions"])
        for begin, one in by_text[0].items()
    ]
    assert sum(same) < 0.05 * size
    random = [b for b, one in by_text[0].items() if one["is_next"] == 1]
    other = [segments(by_text[0][b])[1] != segments(by_text[1][b])[1] for b in random]
    assert sum(other) > 0.9 * len(random)


@pytest.mark.parametrize("pairs", PAIRS)
def test_a_sample_is_a_function_of_seed_and_number(tmp_path, pairs):
    """In whatever order and by whomever it is read; another seed gives others."""
    one = make_samples(tmp_path, USUAL, 64, pairs)
    two = make_samples(tmp_path, USUAL, 64, pairs)
    numbers = [0, 1, 5, 700, 12_345, 2**33]
    read = {number: one[number] for number in numbers}
    again = {number: two[number] for number in reversed(numbers)}
    for number in numbers:
        for name, value in read[number].items():
            assert torch.equal(value, again[number][name])
    other = make_samples(tmp_path, USUAL, 64, pairs, seed=8)
    assert any(not torch.equal(read[n]["tokens"], other[n]["tokens"]) for n in numbers)


def test_a_sample_stays_what_it_is(tmp_path):
    """Literal: a run that is resumed under another version of the program reads the same."""
    sample = make_samples(tmp_path, [[3, 4], [5, 2, 4], [6, 6]], 16, "next_sentence")[4]
    found = {name: value.tolist() for name, value in sample.items()}
    assert found == {
        "tokens": [CLS, 12, 13, 14, 15, 16, MASK, 18, SEP, 5, MASK, 7, SEP, PAD, PAD, PAD],
        "token_types": [0] * 9 + [1] * 4 + [0] * 3,
        "padding_mask": [False] * 13 + [True] * 3,
        "masked_positions": [6, 10],
        "masked_labels": [17, 6],
        "masked_weights": [1.0, 1.0],
        "is_next": 1,
    }


@pytest.mark.parametrize(
    ("documents", "pairs", "message"),
    [
        ([[4, 5], [0]], "next_sentence", "has text in 1 documents of this part"),
        ([[1], [1, 0]], "sentence_order", "has no text of which samples can be made"),
        ([[0], [0, 0]], "none", "has no text of which samples can be made"),
    ],
)
def test_nothing_to_make_samples_of(tmp_path, documents, pairs, message):
    with pytest.raises(UserError, match=message):
        make_samples(tmp_path, documents, 16, pairs)
