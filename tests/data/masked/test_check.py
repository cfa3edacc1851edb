"""What masked samples are refused for: one line that names the field, and what would do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from megatron_grow.config.sections import DataSection
from megatron_grow.data import check as running
from megatron_grow.data.masked.check import check_data
from megatron_grow.data.masked.options import MaskedOptions
from megatron_grow.data.tokenizers.files import SPECIAL
from megatron_grow.inputs.errors import UserError
from tests.data.corpora import run, write_ids, write_json_lines
from tests.data.masked.sentences import FIRST, write_sentences

DOCUMENTS = [[4, 5], [6], [3, 3, 3]]


def write_vocabulary(directory: Path, *words: str) -> str:
    path = directory / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, *words, "##x", *(f"w{n}" for n in range(50))]))
    return str(path)


@pytest.fixture
def corpus(tmp_path) -> str:
    return write_sentences(tmp_path / "c", DOCUMENTS)


def look(corpus: str, pairs: str = "next_sentence", **given: object):
    options = MaskedOptions(**given.pop("options", {}))
    lengths = given.pop("seq_lengths", [32])
    vocabulary = write_vocabulary(Path(corpus).parent)
    fields = {"tokenizer": vocabulary, "split": "1", "train_data_path": [corpus]} | given
    return check_data(
        DataSection(**fields),
        options,
        pairs,
        seq_lengths=lengths,
        vocab_size=60_000,
        evaluate=True,
    )


def fails(corpus: str, *parts: str, **given: object) -> None:
    with pytest.raises(UserError) as caught:
        look(corpus, **given)
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message, message


def test_a_corpus_of_sentences(corpus):
    train, valid = look(corpus)
    assert valid is None
    assert train.documents(train.corpora[0]) == (0, 3)


@pytest.mark.parametrize("pairs", ["next_sentence", "sentence_order", "none"])
def test_a_corpus_of_documents(tmp_path, pairs):
    """Whatever samples are for: they are made of sentences."""
    corpus = write_ids(tmp_path / "c", 5 + np.arange(30), [10, 10, 10])
    fails(
        corpus,
        f"data.train_data_path: {corpus} is not cut into sentences",
        "make it with --split-sentences",
        pairs=pairs,
    )
    good = write_sentences(tmp_path / "good", DOCUMENTS)
    fails(good, "data.valid_data_path: ", "is not cut", valid_data_path=[corpus])


def test_the_reverse(corpus):
    with pytest.raises(UserError) as caught:
        running.check_data(
            DataSection(train_data_path=[corpus], split="1"), seq_length=4, vocab_size=60_000
        )
    message = str(caught.value)
    assert message.startswith(f"data.train_data_path: {corpus} is cut into sentences, up to 3")
    assert message.endswith("make it without --split-sentences")


def test_a_tokenizer_without_what_it_takes(corpus, tmp_path):
    fails(corpus, "data.tokenizer=bytes has no cls_token", tokenizer="bytes")
    path = tmp_path / "other.txt"
    path.write_text("[UNK]\n[SEP]\n[CLS]\n[PAD]\nword\n")
    fails(corpus, f"data.tokenizer={path} has no mask_token, none of [MASK], ", tokenizer=str(path))


@pytest.mark.parametrize("masking", ["whole_word", "span"])
def test_a_tokenizer_that_does_not_show_words(corpus, tmp_path, masking):
    path = tmp_path / "words.json"
    backend = Tokenizer(WordLevel({"word": 0}, unk_token="[UNK]"))
    backend.add_special_tokens(list(SPECIAL))
    backend.save(str(path))
    look(corpus, tokenizer=str(path))
    fails(
        corpus,
        f"data.options.masking={masking} needs to know where words begin",
        "set masking: token",
        tokenizer=str(path),
        options={"masking": masking},
    )


@pytest.mark.parametrize("masking", ["whole_word", "span"])
def test_ids_that_the_model_knows_and_the_tokenizer_does_not(tmp_path, masking):
    strange = write_sentences(tmp_path / "strange", [[4, 5], [6, 300]])
    look(strange)
    said = (
        f"strange.bin has the token id {FIRST + 314}, and data.tokenizer=",
        "set masking: token",
    )
    fails(strange, *said, options={"masking": masking})
    # Also where a look at some of a large corpus does not find them.
    train, _ = look(write_sentences(tmp_path / "c", DOCUMENTS), options={"masking": masking})
    assert train.vocab_size == len(SPECIAL) + 51


def test_lengths_of_samples(corpus):
    look(corpus, seq_lengths=[32, 5])
    fails(corpus, "train.seq_length=4 leaves no room", "at least 5", seq_lengths=[32, 4])
    look(corpus, pairs="none", seq_lengths=[4])
    fails(corpus, "at least 4", pairs="none", seq_lengths=[3])


def test_another_document_is_needed(tmp_path):
    corpus = write_sentences(tmp_path / "c", [[4, 5, 6]])
    fails(corpus, f"data.train_data_path: {corpus} has 1 documents", "samples need 2")
    look(corpus, pairs="sentence_order")
    three = write_sentences(tmp_path / "three", DOCUMENTS)
    fails(three, "data.split=2,1: ", "has 1 documents", "change the shares", split="2,1")


def test_made_by_preprocessing(tmp_path):
    """A corpus says what cut it, so that documents of one sentence are known for what they are."""
    source = write_json_lines(tmp_path / "in.jsonl", ["w1 w2", "w3", "w4 x"])
    fields = {"input": [source], "tokenizer": write_vocabulary(tmp_path)}
    sentences = run(output_prefix=tmp_path / "s", split_sentences=True, **fields)["train"]
    assert sentences == f"{tmp_path}/s_text_sentence"
    look(sentences)
    documents = run(output_prefix=tmp_path / "d", **fields)["train"]
    fails(documents, "is not cut into sentences")
    ended = run(output_prefix=tmp_path / "e", append_eod=True, split_sentences=True, **fields)
    fails(ended["train"], "end-of-document token", "make it without --append-eod")
