"""WordPiece: vocab.txt and trained ones, against transformers; what masked samples need of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import models
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from megatron_grow.data.indexed import open_corpus
from megatron_grow.data.tokenizers.files import byte_level
from megatron_grow.data.tokenizers.load import (
    ByteTokenizer,
    load_tokenizer,
    tokenizer_digest,
)
from megatron_grow.data.tokenizers.masking import masking_tokens
from megatron_grow.data.tokenizers.train import train_word_piece
from megatron_grow.inputs.errors import UserError
from tests.data.corpora import run, stdlib_texts, write_json_lines

TEXTS = [
    "The cat sat; on the MAT!",
    "Héllo WORLD naïve ﬁn İstanbul",
    "中文 and 日本語 text\u200b\x00 \ufffd",
    "import os.path # [MASK] is no [SEP] here",
    "unaffable " + "x" * 120,
    "",
    "  \n\t ",
]


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory) -> dict[bool, Path]:
    """vocab.txt in lower case (True) and cased, with nothing beside them."""
    found = {}
    for lower in (True, False):
        folder = tmp_path_factory.mktemp("vocabulary")
        backend = train_word_piece(lambda: stdlib_texts(8), 400, lower_case=lower)
        tokens = sorted(backend.get_vocab().items(), key=lambda entry: entry[1])
        found[lower] = folder / "bert-wordpiece.txt"
        found[lower].write_text("".join(f"{token}\n" for token, _ in tokens), encoding="utf-8")
    return found


@pytest.mark.parametrize("lower", [True, False])
def test_same_ids_as_transformers(vocabularies, lower):
    """Case follows the vocabulary. Special tokens in a text are text, which transformers can do."""
    ours = load_tokenizer(str(vocabularies[lower]))
    theirs = BertTokenizerFast(vocab=str(vocabularies[lower]), do_lower_case=lower)
    for text in [*TEXTS, *stdlib_texts(10)[8:]]:
        ids = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == ids
    assert ours.vocab_size == len(theirs) == 400
    assert ours.unknown == theirs.unk_token_id


@pytest.mark.parametrize("settings", [{"do_lower_case": False}, {"strip_accents": False}])
def test_settings_beside_a_vocabulary(vocabularies, tmp_path, settings):
    path = tmp_path / "vocab.txt"
    path.write_bytes(vocabularies[True].read_bytes())
    path.with_name("tokenizer_config.json").write_text(json.dumps(settings))
    theirs = BertTokenizerFast(vocab=str(path), **settings)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert load_tokenizer(str(path)).encode(text) == ids


def test_a_file_that_is_no_vocabulary(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("the\ncat\n")
    with pytest.raises(UserError, match=r"words\.txt has no token \[UNK\]: it is no WordPiece"):
        load_tokenizer(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not a readable vocabulary"):
        load_tokenizer(str(path))


SPECIALS = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


def test_lines_of_another_system_and_twice_the_same(tmp_path):
    """A token that is there twice has the number of its last line, as in transformers."""
    path = tmp_path / "vocab.txt"
    path.write_bytes((SPECIALS + "a\nb\na\n##c\n\n").replace("\n", "\r\n").encode())
    ours, theirs = load_tokenizer(str(path)), BertTokenizerFast(vocab=str(path))
    assert ours.encode("A b Bc d") == [7, 6, 6, 8, 1]
    assert theirs("A b Bc d", add_special_tokens=False)["input_ids"] == [7, 6, 6, 8, 1]
    assert masking_tokens(ours).ordinary.tolist() == [6, 7, 8]


def test_settings_that_are_no_choice(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text(SPECIALS + "a\n")
    config = path.with_name("tokenizer_config.json")
    config.write_text('{"do_lower_case": "yes", "strip_accents": null}')
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(path))
    assert str(caught.value) == f"{config}: do_lower_case='yes' must be true or false"
    config.write_text('{"strip_accents": null}')
    assert load_tokenizer(str(path)).encode("A") == [5]


def test_special_tokens_alone(tmp_path):
    """Every text is unknown, and no token is left to stand in another's place."""
    path = tmp_path / "vocab.txt"
    path.write_text(SPECIALS)
    with pytest.raises(UserError) as caught:
        masking_tokens(load_tokenizer(str(path)))
    assert str(caught.value) == (
        f"data.tokenizer={path} has special tokens alone, none of which can be masked"
    )


@pytest.mark.parametrize("cased", [False, True])
def test_trained_on_the_input(tmp_path, cased):
    """The same for any number of workers; transformers loads it, with BERT's frame."""
    source = write_json_lines(tmp_path / "in.jsonl", stdlib_texts(6))
    fields = {
        "input": [source],
        "train_tokenizer": 500,
        "tokenizer_model": "wordpiece",
        "cased": cased,
        "split_sentences": True,
    }
    prefix = run(output_prefix=tmp_path / "one", **fields)["train"]
    run(output_prefix=tmp_path / "two", workers=2, **fields)
    path = tmp_path / "one-tokenizer.json"
    assert path.read_bytes() == (tmp_path / "two-tokenizer.json").read_bytes()
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path))
    ours = load_tokenizer(str(path))
    text = "Return the Value of import."
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert (ours.encode(text) == ours.encode(text.lower())) is not cased
    assert theirs.convert_ids_to_tokens(theirs("a", "b")["input_ids"]) == [
        *("[CLS]", "a", "[SEP]", "b", "[SEP]")
    ]
    assert theirs("a", "b", return_token_type_ids=True)["token_type_ids"] == [0, 0, 0, 1, 1]
    assert theirs.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [
        *range(5)
    ]
    sidecar = open_corpus(prefix, "").sidecar
    assert sidecar is not None and sidecar.tokenizer_digest == tokenizer_digest(ours)


def test_options_of_training_are_refused_without_it(tmp_path):
    for fields in ({"tokenizer_model": "wordpiece"}, {"cased": True, "train_tokenizer": 300}):
        with pytest.raises(UserError, match="give --train-tokenizer N"):
            run(input=[tmp_path], output_prefix=tmp_path / "c", **fields)
    with pytest.raises(UserError, match="train_tokenizer=6 must be from 7"):
        train_word_piece(list, 6, lower_case=True)


def test_what_masked_samples_need(vocabularies):
    tokens = masking_tokens(load_tokenizer(str(vocabularies[True])))
    names = vocabularies[True].read_text(encoding="utf-8").splitlines()
    assert [tokens.pad, tokens.cls, tokens.sep, tokens.mask] == [0, 2, 3, 4]
    assert tokens.ordinary.tolist() == list(range(5, 400))  # 1 is the unknown token
    assert tokens.continues is not None
    assert tokens.continues.tolist() == [name.startswith("##") for name in names]


def _roberta(path: Path, specials: list[str]) -> Path:
    vocabulary = {token: number for number, token in enumerate([*specials, *"abĠĊ", "Ġa", "ab"])}
    backend = byte_level(models.BPE(vocab=vocabulary, merges=[("Ġ", "a"), ("a", "b")]))
    backend.add_special_tokens(specials)
    backend.save(str(path))
    return path


def test_tokens_of_a_roberta(tmp_path):
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokens = masking_tokens(load_tokenizer(str(_roberta(tmp_path / "t.json", specials))))
    assert [tokens.cls, tokens.pad, tokens.sep, tokens.mask] == [0, 1, 2, 4]
    assert tokens.ordinary.tolist() == [5, 6, 7, 8, 9, 10]
    assert tokens.continues is not None  # a, b and ab go on, what begins with a space does not
    assert [k for k in tokens.ordinary if tokens.continues[k]] == [5, 6, 10]


def test_named_beside_the_tokenizer(tmp_path):
    path = _roberta(tmp_path / "t.json", ["<cls>", "<pad>", "</s>", "<gap>"])
    with pytest.raises(UserError) as caught:
        masking_tokens(load_tokenizer(str(path)))
    assert str(caught.value).startswith(f"data.tokenizer={path} has no cls_token, none of [CLS], ")
    settings = {"cls_token": {"content": "<cls>"}, "mask_token": "<gap>"}
    path.with_name("tokenizer_config.json").write_text(json.dumps(settings))
    tokens = masking_tokens(load_tokenizer(str(path)))
    assert [tokens.cls, tokens.mask] == [0, 3]


def test_a_tokenizer_without_a_mask():
    with pytest.raises(UserError, match=r"data\.tokenizer=bytes has no cls_token"):
        masking_tokens(ByteTokenizer())
