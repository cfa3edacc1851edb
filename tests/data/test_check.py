"""What is wrong with a run's data is said in one line, before anything is built."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from megatron_grow.config.sections import DataSection
from megatron_grow.data.check import check_data
from megatron_grow.inputs.errors import UserError
from tests.data.corpora import describe, write_corpus, write_ids


@pytest.fixture
def corpus(tmp_path) -> str:
    """100 documents of 10 tokens, 0 to 999."""
    return write_corpus(tmp_path / "c", [10] * 100)


@pytest.fixture
def text(tmp_path) -> str:
    """100 documents of 10 bytes, made with the tokenizer ``bytes`` and without a sidecar yet."""
    return write_ids(tmp_path / "text", np.arange(1000) % 257, [10] * 100)


def check(corpus: str, *, seq_length: int = 8, vocab_size: int = 1000, **fields: object) -> None:
    data = DataSection(**{"train_data_path": [corpus], "split": "9,1", **fields})
    check_data(data, seq_length=seq_length, vocab_size=vocab_size)


def fails(corpus: str, message: str, **arguments: object) -> None:
    with pytest.raises(UserError) as error:
        check(corpus, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_good_corpus_passes(corpus):
    check(corpus)
    check(corpus, seq_length=899, split="9,0,1")  # 90 documents, 900 tokens
    check(corpus, valid_data_path=[1.0, corpus])


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_missing_file(corpus, suffix):
    fails(corpus, "data.valid_data_path: nowhere.bin does not exist", valid_data_path=["nowhere"])
    fails(corpus + suffix, f"{corpus}{suffix}.bin does not exist; name the corpus without")
    os.unlink(corpus + suffix)
    fails(corpus, f"data.train_data_path: {corpus}{suffix} does not exist")


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_something_else_in_place_of_a_file(corpus, suffix):
    path = Path(corpus + suffix)
    path.unlink(missing_ok=True)
    path.mkdir()
    fails(corpus, f"{path} is not a regular file")
    path.rmdir()
    os.mkfifo(path)
    fails(corpus, f"{path} is not a regular file")
    path.unlink()
    path.symlink_to(path)
    fails(corpus, f"{path} cannot be opened: Too many levels of symbolic links")
    path.unlink()
    path.symlink_to("nowhere")
    fails(corpus, f"{path} cannot be opened: No such file or directory")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_unreadable_file(corpus, suffix, monkeypatch):
    """The tests may run as root, who can read everything; so the system call refuses."""

    def refuse(path: str, flags: int) -> int:
        if path.endswith(suffix):
            raise PermissionError(13, "Permission denied")
        return opened(path, flags)

    opened = os.open
    monkeypatch.setattr(os, "open", refuse)
    fails(corpus, f"{corpus}{suffix} cannot be opened: Permission denied")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("size", [0, 20, 100, -1])
def test_truncated_file(corpus, suffix, size):
    path = Path(corpus + suffix)
    path.write_bytes(path.read_bytes()[:size])
    fails(corpus, f"{path} has" if suffix == ".bin" else f"{path} is truncated")


def test_index_cut_at_any_byte(corpus):
    path = Path(f"{corpus}.idx")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        fails(corpus, f"{path} is truncated")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_file_longer_than_it_should_be(corpus, suffix):
    with open(corpus + suffix, "ab") as file:
        file.write(bytes(2))
    fails(corpus, f"{corpus}.bin has 2002 bytes" if suffix == ".bin" else "damaged: it has 2044")


# 34 bytes of header, 100 lengths of 4 bytes, 100 positions of 8, 101 document bounds of 8
@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"M", None),
        (0, b"TNTIDX\0\0\0", "is not a Megatron index of version 1: it begins with b'TNTIDX"),
        (9, b"\2", "is not a Megatron index of version 1"),
        (17, b"\0", "0 is not the code of an integer type of tokens"),
        (17, b"\7", "7 is not the code of an integer type of tokens"),  # float32
        (17, b"\x63", "99 is not the code of an integer type of tokens"),
        (17, b"\1", "bin has 2000 bytes and"),  # bytes, and positions would step by 10
        (18, b"\xff" * 8, "is truncated or damaged"),
        (26, b"\0" * 8, "is truncated or damaged"),
        (34 + 4 * 7, b"\x0b", "position of sequence 8 does not continue"),
        (34 + 4 * 7 + 3, b"\x80", "position of sequence 7 does not continue"),  # negative
        (434 + 8 * 5, b"\xff" * 8, "position of sequence 5 does not continue"),
        (434 + 8 * 99, b"\0", "position of sequence 99 does not continue"),
        (1234, b"\1", "document bound 0 is out of order"),
        (1234 + 8 * 50, b"\0", "document bound 50 is out of order"),
        (1234 + 8 * 50 + 7, b"\x7f", "document bound 51 is out of order"),
        (1234 + 8 * 100, b"\x63", "its documents end at sequence 99 of 100"),
    ],
)
def test_damaged_index(corpus, offset, value, message):
    with open(f"{corpus}.idx", "r+b") as file:
        file.seek(offset)
        file.write(value)
    if message is None:
        check(corpus)
    elif "bin has" in message:
        fails(corpus, "position of sequence 1 does not continue")
    else:
        fails(corpus, message)


def test_empty_documents_are_not_sentences(tmp_path):
    """Megatron-LM's tool gives an empty text a document without a sequence."""
    corpus = write_ids(tmp_path / "c", np.arange(30), [10, 10, 10], [0, 1, 0, 0, 1, 1, 0])
    check(corpus, split="1")


def test_sentences_are_refused(tmp_path):
    corpus = write_ids(tmp_path / "c", np.arange(30), [10, 10, 10], [0, 1, 2])
    fails(corpus, "is cut into sentences, up to 2 in a document")


def test_too_short_for_one_sample(corpus):
    fails(corpus, "has 900 tokens in 90 documents", seq_length=900)
    fails(corpus, "data.split=9,1: ", seq_length=100)  # training has enough, validation does not
    fails(corpus, "train.seq_length + 1 = 1001", seq_length=1000, split="1")


def test_validation_corpus_too_short(corpus, tmp_path):
    short = write_corpus(tmp_path / "short", [8])
    fails(corpus, "data.valid_data_path: ", valid_data_path=[short])
    fails(corpus, f"{short} has 8 tokens in 1 documents", valid_data_path=[corpus, short])


def test_no_tokens_at_all(tmp_path):
    fails(write_ids(tmp_path / "c", np.arange(0), [], [0, 0]), "has 0 tokens in 0 documents")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_token_ids_outside_the_vocabulary(text, dtype):
    """A sidecar beside them changes nothing."""
    ids = np.arange(1000) % 257
    ids[700] = 60_000
    write_ids(Path(text), ids, [10] * 100, dtype=dtype)
    for _ in range(2):
        fails(
            text, f"{text}.bin has the token id 60000, and the model knows 0 to 256", vocab_size=257
        )
        check(text, vocab_size=60_001)
        describe(text)


def test_negative_token_ids(text):
    ids = np.arange(1000) % 257
    ids[3] = -1
    write_ids(Path(text), ids, [10] * 100, dtype=np.int32)
    fails(text, "has the token id -1")


def test_corpus_of_another_tokenizer(text):
    describe(text)
    check(text)
    describe(text, tokenizer="/elsewhere/tokenizer.json", vocab_size=300)  # special tokens more
    check(text)
    for path in ({}, {"train_data_path": [text], "valid_data_path": [text]}):
        describe(text, tokenizer_digest="0123456789abcdef", tokenizer="x/tokenizer.json")
        fails(
            text, f"{text} was made with another tokenizer, x/tokenizer.json (257 entries", **path
        )
        describe(text, eod=0)
        fails(text, "than data.tokenizer=bytes (257 entries, end of document 256", **path)


def test_every_corpus_of_a_blend_has_the_tokenizer(text, corpus, tmp_path):
    other = write_ids(tmp_path / "other", np.arange(1000) % 257, [10] * 100)
    describe(text)
    describe(other, tokenizer_digest="0123456789abcdef")
    fails(text, f"data.train_data_path: {other} was", train_data_path=[1, corpus, 2, other])
    fails(text, f"data.valid_data_path: {other} was", valid_data_path=[corpus, text, other])
    data = DataSection(train_data_path=[text], valid_data_path=[other])
    check_data(data, seq_length=8, vocab_size=257, evaluate=False)


def test_older_sidecar_without_a_digest(text):
    describe(text, tokenizer_digest=None)
    check(text)
    for change in ({"vocab_size": 300}, {"eod": 0}):
        describe(text, tokenizer_digest=None, **change)
        fails(text, "was made with another tokenizer")


def test_sidecar_of_another_corpus(text):
    describe(text, documents=99)
    fails(text, f"{text}.json tells of 99 documents and 1000 tokens")
    describe(text, tokens=999)
    fails(text, "it belongs to another corpus")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"tokenizer": "bytes"}',
        b"\xff\xfe{\0}\0",
        b"[" * 60_000,
        b'{"text": "a line of the source"}\n' * 2,
    ],
)
def test_damaged_sidecar(text, content):
    Path(f"{text}.json").write_bytes(content)
    fails(text, f"{text}.json does not describe the corpus beside it")


@pytest.mark.parametrize("field", ["tokenizer", "vocab_size", "eod", "tokens", "tokenizer_digest"])
def test_sidecar_with_a_field_of_another_kind(text, field):
    describe(text, **{field: [1]})
    fails(text, f"{field} is [1]")


def test_sidecar_with_a_byte_order_mark_or_more_fields(text):
    describe(text, tokenizer_version=3)
    path = Path(f"{text}.json")
    path.write_text("\ufeff" + path.read_text())
    check(text)


@pytest.mark.parametrize(
    "split", ["", "a,b", "0,0,0", "1,2,3,4", "-1,1", "9" * 400, "nan", "1;2", "\u0661,1"]
)
def test_malformed_split(corpus, split):
    fails(corpus, f"data.split={split} must be", split=split)


@pytest.mark.parametrize("split", ["90,10", "0.9,0.1", "9, 1", "1800,200,0", ".9,.1", "45,5,0"])
def test_shares_of_any_sum(corpus, split):
    """As in Megatron-LM, shares are relative: nine tenths and one tenth of 100 documents."""
    data = DataSection(train_data_path=[corpus], split=split)
    train, valid = check_data(data, seq_length=8, vocab_size=1000)
    assert train.documents(train.corpora[0]) == (0, 90)
    assert valid.documents(valid.corpora[0]) == (90, 100)


def test_nothing_to_train_on(corpus):
    fails(corpus, "data.split=0,1 leaves nothing to train on", split="0,1")
    fails(corpus, "data.train_data_path is empty", train_data_path=[])


def test_no_validation(corpus):
    data = DataSection(train_data_path=[corpus], split="1,0,0")
    assert check_data(data, seq_length=8, vocab_size=1000)[1] is None
    data = DataSection(train_data_path=[corpus], valid_data_path=["nowhere"])
    assert check_data(data, seq_length=8, vocab_size=1000, evaluate=False)[1] is None


def test_one_corpus_named_twice(corpus, tmp_path):
    for suffix in (".bin", ".idx"):
        Path(f"{tmp_path}/alias{suffix}").symlink_to(corpus + suffix)
    for twin in (corpus, f"{tmp_path}/../{tmp_path.name}/c", f"{tmp_path}/alias"):
        message = f"names one corpus twice, as {corpus} and as {twin}"
        fails(corpus, f"data.train_data_path {message}", train_data_path=[corpus, twin])
        fails(corpus, f"data.valid_data_path {message}", valid_data_path=[1, corpus, 2, twin])
    check(corpus, valid_data_path=[corpus])  # training loss by another name


def test_a_split_of_few_documents_says_what_to_do(tmp_path):
    prefix = write_corpus(tmp_path / "c", [500, 500, 500, 500])
    told = "has 0 tokens in 0 documents for this part", "this corpus has 4: change the shares, or"
    for message in told:
        fails(prefix, message, vocab_size=2000, split="969,30,1")
