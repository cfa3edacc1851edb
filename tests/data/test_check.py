"""What is wrong with a run's data is said in one line, before anything is built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_grow.config.errors import UserError
from megatron_grow.config.sections import DataSection
from megatron_grow.data.check import check_data
from tests.data.corpora import write_corpus


@pytest.fixture
def corpus(tmp_path) -> str:
    """100 documents of 10 tokens, 0 to 999."""
    return write_corpus(tmp_path / "c", [10] * 100)


def check(corpus: str, *, seq_length: int = 8, vocab_size: int = 1000, **fields: object) -> None:
    data = DataSection(**{"train_data_path": [corpus], "split": "9,1", **fields})
    check_data(data, seq_length=seq_length, vocab_size=vocab_size)


def test_a_good_corpus_passes(corpus):
    check(corpus)
    check(corpus, seq_length=899, split="9,0,1")  # 90 documents, 900 tokens
    check(corpus, valid_data_path=[0.5, corpus, 0.5, corpus])


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_missing_file(corpus, suffix):
    fails(corpus, "data.valid_data_path: nowhere.bin does not exist", valid_data_path=["nowhere"])
    os.unlink(corpus + suffix)
    fails(corpus, f"data.train_data_path: {corpus}{suffix} does not exist")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("size", [0, 20, 100, -1])
def test_truncated_file(corpus, suffix, size):
    path = Path(corpus + suffix)
    path.write_bytes(path.read_bytes()[:size])
    fails(corpus, f"{path} has" if suffix == ".bin" else f"{path} is truncated")


def test_too_short_for_one_sample(corpus):
    fails(corpus, "has 900 tokens in 90 documents", seq_length=900)
    fails(corpus, "data.split=9,1: ", seq_length=100)  # training has enough, validation does not
    fails(corpus, "train.seq_length + 1 = 1001", seq_length=1000, split="1")


@pytest.mark.parametrize("sidecar", [True, False])
def test_vocabulary_larger_than_the_models(tmp_path, sidecar):
    corpus = write_corpus(tmp_path / "v", [10] * 100, first_token=50, sidecar=sidecar)
    check(corpus, vocab_size=1050)
    fails(corpus, "has a vocabulary of 1050", vocab_size=1049)


@pytest.mark.parametrize("split", ["", "a,b", "0,0,0", "1,2,3,4", "-1,1"])
def test_malformed_split(corpus, split):
    fails(corpus, f"data.split={split} must be", split=split)


def test_nothing_to_train_on(corpus):
    fails(corpus, "data.split=0,1 leaves nothing to train on", split="0,1")
    fails(corpus, "data.train_data_path is empty", train_data_path=[])


def test_no_validation(corpus):
    data = DataSection(train_data_path=[corpus], split="1,0,0")
    assert check_data(data, seq_length=8, vocab_size=1000)[1] is None
    data = DataSection(train_data_path=[corpus], valid_data_path=["nowhere"])
    assert check_data(data, seq_length=8, vocab_size=1000, evaluate=False)[1] is None


def fails(corpus: str, message: str, **arguments: object) -> None:
    with pytest.raises(UserError) as error:
        check(corpus, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
