"""Datasets of masked samples: the same for any workers, layout, length of a run; by length."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_grow.data.blend import Blend
from megatron_grow.data.check import Split
from megatron_grow.data.datasets import Datasets
from megatron_grow.data.indexed import open_corpus
from megatron_grow.data.loader import micro_batches
from megatron_grow.data.masked.datasets import build_masked
from megatron_grow.data.masked.options import MaskedOptions
from megatron_grow.data.masked.samples import MaskedText
from tests.data.masked.sentences import VOCABULARY, segments, special_tokens, write_sentences

RANDOM = np.random.RandomState(3)
DOCUMENTS = [[int(n) for n in RANDOM.randint(1, 15, size)] for size in RANDOM.randint(2, 30, 60)]
KIND = MaskedText(64, 7, "next_sentence", MaskedOptions(), special_tokens())
Sample = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpora")
    return [write_sentences(folder / name, DOCUMENTS[k::2]) for k, name in enumerate("ab")]


def build(
    corpora: list[str], cache: Path, *, samples: int = 50, lengths=(64,), kind: MaskedText = KIND
) -> Datasets:
    opened = [open_corpus(prefix, "data.train_data_path") for prefix in corpora]
    blend = Blend(corpora, [0.7, 0.3] if len(corpora) > 1 else None)
    train = Split(blend, (0.0, 0.8), opened, VOCABULARY)
    valid = Split(blend, (0.8, 1.0), opened, VOCABULARY)
    return build_masked(
        (train, valid),
        kind,
        lengths,
        train_samples=samples,
        valid_samples=8,
        cache_dir=cache,
    )


def assert_same(one: list[Sample], other: list[Sample]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def stream(dataset, steps: int, *, rank: int = 0, of: int = 1, **given: int) -> list[Sample]:
    """Micro-batches of 2 of a rank, 8 samples a step."""
    fields = {"first_sample": 0, "global_batch_size": 8, "micro_batch_size": 2} | given
    batches = micro_batches(dataset, data_parallel_rank=rank, data_parallel_size=of, **fields)
    found = list(islice(batches, steps * fields["global_batch_size"] // of // 2))
    batches.close()
    return found


def test_same_for_any_workers_and_layout(corpora, tmp_path):
    train = build(corpora, tmp_path).train
    one = stream(train, 3)
    assert_same(one, stream(train, 3, num_workers=2))
    parts = [stream(train, 3, rank=rank, of=2) for rank in range(2)]
    assert_same(one, [batch for pair in zip(*parts, strict=True) for batch in pair])


def test_a_resumed_run_goes_on(corpora, tmp_path):
    """From sample 16 on, with other batches, out of another process's cache or none."""
    whole = stream(build(corpora, tmp_path / "one").train, 4)
    again = build(corpora, tmp_path / "two").train
    assert_same(whole[8:], stream(again, 4, first_sample=16, global_batch_size=4))


def test_the_length_of_a_run_changes_nothing(corpora, tmp_path):
    short, long = (build(corpora, tmp_path, samples=n).train for n in (20, 5000))
    assert_same([short[n] for n in range(20)], [long[n] for n in range(20)])
    assert long[4999]["tokens"].shape == (64,)


def test_shares_of_a_blend(corpora, tmp_path):
    """Seven of ten samples are the first corpus's next ones, in its order."""
    train = build(corpora, tmp_path, samples=100).train
    alone = [build([corpus], tmp_path).train for corpus in corpora]
    texts = [[dataset[n]["tokens"].tolist() for n in range(100)] for dataset in alone]
    source = [train[n]["tokens"].tolist() for n in range(100)]
    assert sum(sample in texts[0] for sample in source) == 70
    assert sum(sample in texts[1] for sample in source) == 30


def test_a_stage_with_shorter_samples(corpora, tmp_path):
    """Made for the length: whole pairs of sentences, of all the corpus, and no halves of others."""
    train = build(corpora[:1], tmp_path, lengths=(32, 64)).train
    corpus = open_corpus(corpora[0], "data.train_data_path")
    short = train.cut(2)
    sample = short[0]
    assert sample["tokens"].shape == (32,) and sample["masked_positions"].shape == (5,)
    assert train.cut(1)[0]["tokens"].shape == train[0]["tokens"].shape == (64,)
    seen = set()
    for number in range(short.samples_per_epoch):
        parts = segments(short[number])
        assert sum(map(len, parts)) <= 29
        seen |= {place for part in parts for place in part}
    last = int(corpus.document_bounds()[round(0.8 * corpus.documents)])
    assert seen == set(range(corpus.begin(last)))


def test_shorter_samples_of_a_blend(corpora, tmp_path):
    """As many as there are tokens for in the longest, training and validation."""
    built = build(corpora, tmp_path, samples=50, lengths=(32,))
    for dataset, longest in ((built.train, 50), (built.valid, 8)):
        assert dataset is not None
        assert dataset[longest - 1]["tokens"].shape == (64,)
        assert dataset.cut(2)[2 * longest - 1]["tokens"].shape == (32,)


def test_validation_is_of_other_documents_and_always_the_same(corpora, tmp_path):
    built = build(corpora[:1], tmp_path)
    places = [
        {place for number in range(40) for part in segments(dataset[number]) for place in part}
        for dataset in (built.train, built.valid)
    ]
    assert not places[0] & places[1]
    again = build(corpora[:1], tmp_path / "other", samples=3)
    assert_same([built.valid[n] for n in range(8)], [again.valid[n] for n in range(8)])


def test_indices_are_kept(corpora, tmp_path, monkeypatch):
    first = build(corpora, tmp_path, lengths=(32,)).train
    monkeypatch.setattr(MaskedText, "index", pytest.fail)
    again = build(corpora, tmp_path, lengths=(32,)).train
    assert_same([first[3], first.cut(2)[3]], [again[3], again.cut(2)[3]])


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"pairs": "sentence_order"}, {"options": MaskedOptions(short_seq_prob=1.0)}],
)
def test_an_index_is_kept_for_its_settings_alone(corpora, tmp_path, change):
    build(corpora[:1], tmp_path / "one")
    other = replace(KIND, **change)
    found = [build(corpora[:1], tmp_path / name, kind=other).train for name in ("one", "two")]
    assert_same(*([dataset[n] for n in range(50)] for dataset in found))
