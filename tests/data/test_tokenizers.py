"""Tokenizers against the tokenizers library, and what a corpus must not do to them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from megatron_grow.data.tokenizers.load import load_tokenizer, tokenizer_digest
from megatron_grow.data.tokenizers.train import train_bpe
from megatron_grow.inputs.errors import UserError
from tests.data.corpora import stdlib_texts

TEXT = "naïve café: 数学 🙂\r\n\tdef f(x):  return x <|endoftext|> \x00"


@pytest.fixture(scope="module")
def bpe_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_bpe(stdlib_texts(20), 600).save(str(path))
    return path


def test_bytes():
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.vocab_size, tokenizer.eod) == (257, 256)
    assert tokenizer.encode(TEXT) == list(TEXT.encode("utf-8"))
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.decode([104, 105, 256]) == "hi<|endoftext|>"


def test_tokenizer_json_agrees_with_the_library(bpe_file):
    tokenizer = load_tokenizer(str(bpe_file))
    library = tokenizers.Tokenizer.from_file(str(bpe_file))
    text = stdlib_texts(25)[-1]
    assert tokenizer.encode(text) == library.encode(text).ids
    assert tokenizer.vocab_size == library.get_vocab_size() == 600
    assert tokenizer.eod == library.token_to_id("<|endoftext|>")
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_text_cannot_forge_an_end_of_document(bpe_file):
    library = tokenizers.Tokenizer.from_file(str(bpe_file))
    tokenizer = load_tokenizer(str(bpe_file))
    assert tokenizer.eod in library.encode(TEXT).ids  # what the library does by default
    assert tokenizer.eod not in tokenizer.encode(TEXT)


def test_settings_for_inference_do_not_cut_a_corpus(bpe_file, tmp_path):
    library = tokenizers.Tokenizer.from_file(str(bpe_file))
    library.enable_truncation(4)
    library.enable_padding(length=8)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert len(tokenizer.encode("a")) == 1


def test_gpt2_agrees_with_the_library(bpe_file, tmp_path):
    tokenizers.Tokenizer.from_file(str(bpe_file)).model.save(str(tmp_path))
    files = str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    tokenizer = load_tokenizer("gpt2", *files)
    library = tokenizers.ByteLevelBPETokenizer(*files)
    assert tokenizer.encode(TEXT) == library.encode(TEXT).ids
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.eod == json.loads((tmp_path / "vocab.json").read_text())["<|endoftext|>"]


def test_end_of_document_is_what_the_tokenizer_config_says(tmp_path):
    model = tokenizers.models.WordLevel({"a": 0, "</s>": 1, "<stop>": 7}, unk_token="a")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    path = str(tmp_path / "tokenizer.json")
    assert load_tokenizer(path).eod == 1
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<stop>"}}')
    assert load_tokenizer(path).eod == 7
    assert load_tokenizer(path).vocab_size == 8  # ids may have holes


def test_training_is_deterministic(tmp_path):
    """Other hash seeds and other thread counts give the same file."""
    script = (
        "import sys; from megatron_grow.data.tokenizers.train import train_bpe;"
        "train_bpe([open(sys.argv[1]).read()], 500).save(sys.argv[2])"
    )
    text = tmp_path / "text"
    text.write_text("".join(stdlib_texts(8)))
    for seed, threads in (("1", "1"), ("2", "4")):
        subprocess.run(
            [sys.executable, "-c", script, str(text), str(tmp_path / f"{seed}.json")],
            env=os.environ
            | {"PYTHONPATH": ".", "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            check=True,
            timeout=600,
        )
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_mistakes_are_named(tmp_path):
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    for arguments, message in (
        (("gpt3",), "tokenizer=gpt3 is neither bytes nor gpt2 nor an existing tokenizer.json"),
        (("gpt2",), "needs vocab_file=None and merge_file=None"),
        ((str(broken),), f"tokenizer={broken} is not a readable tokenizer.json"),
    ):
        with pytest.raises(UserError, match=message):
            load_tokenizer(*arguments)
    for size in (-5, 256, 10**20):
        with pytest.raises(UserError, match=f"train_tokenizer={size} must be from 257 "):
            train_bpe([], size)


def test_digest_is_of_the_content(bpe_file, tmp_path):
    """One digest for one tokenizer under any name; another as soon as it encodes otherwise."""
    digest = tokenizer_digest(load_tokenizer(str(bpe_file)))
    library = tokenizers.Tokenizer.from_file(str(bpe_file))
    library.enable_truncation(4)
    library.add_special_tokens(["<pad>"])
    library.save(str(tmp_path / "same.json"))
    assert tokenizer_digest(load_tokenizer(str(tmp_path / "same.json"))) == digest
    library.model.save(str(tmp_path))
    gpt2 = load_tokenizer("gpt2", str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert tokenizer_digest(gpt2) == digest
    exported = tmp_path / "bytes.json"
    exported.write_text(load_tokenizer("bytes").to_json(), encoding="utf-8")
    digests = {digest, tokenizer_digest(load_tokenizer("bytes"))}
    assert tokenizer_digest(load_tokenizer(str(exported))) in digests and len(digests) == 2
    library.normalizer = tokenizers.normalizers.Lowercase()
    library.save(str(tmp_path / "lower.json"))
    (tmp_path / "eos").mkdir()
    (tmp_path / "eos/tokenizer.json").write_bytes(bpe_file.read_bytes())
    (tmp_path / "eos/tokenizer_config.json").write_text('{"eos_token": "th"}')
    for other in ("lower.json", "eos/tokenizer.json"):
        digests.add(tokenizer_digest(load_tokenizer(str(tmp_path / other))))
    assert len(digests) == 4


def test_text_cannot_forge_an_end_that_is_not_marked_special(tmp_path):
    """Published files may list it as an ordinary added token."""
    library = tokenizers.Tokenizer.from_str(load_tokenizer("bytes").to_json())
    library.add_tokens(["</s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    assert library.encode("a</s>b").ids == [97, 257, 98]
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert tokenizer.eod == 257
    assert tokenizer.encode("a</s>b") == list(b"a</s>b")


def test_a_corpus_is_always_encoded_alike(tmp_path):
    """Dropout of merges is a setting for training on small corpora, drawn anew at every word."""
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE({"a": 0, "aa": 1, "</s>": 2}, [("a", "a")], dropout=0.5)
    )
    library.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).encode("aa" * 64) == [1] * 64


def write_tokenizer(directory: Path, model: tokenizers.models.Model) -> str:
    path = str(directory / "tokenizer.json")
    tokenizers.Tokenizer(model).save(path)
    return path


def test_an_end_that_the_model_itself_finds_is_spelt_out(tmp_path):
    """T5's has its </s> among the pieces, the most probable of all."""
    pieces = ["<unk>", "</s>", *"</s>ab"]
    model = tokenizers.models.Unigram([(piece, 0.0) for piece in pieces], unk_id=0)
    path = write_tokenizer(tmp_path, model)
    assert tokenizers.Tokenizer.from_file(path).encode("a</s></s>b").ids == [6, 1, 1, 7]
    tokenizer = load_tokenizer(path)
    assert (tokenizer.eod, tokenizer.unknown) == (1, 0)
    assert tokenizer.encode("a</s></s>b") == [6, *[2, 3, 4, 5] * 2, 7]
    assert tokenizer.encode("aéb") == [6, 0, 7]


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({"a": 0, "</s>": 1}, "its end-of-document token '</s>' also stands for text"),
        ({"a": 0, "</s>": 2**31 - 1}, "token '</s>' has id 2147483647, beyond int32"),
        ({"a": 1, "</s>": 1}, "share id 1"),
    ],
)
def test_an_end_of_document_is_a_token_of_its_own(tmp_path, vocabulary, message):
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "</s>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(UserError, match=re.escape(message)):
        load_tokenizer(str(tmp_path / "tokenizer.json"))


def test_characters_without_a_token_are_told(bpe_file, tmp_path):
    """A BPE drops them, unless it has all bytes or an unknown token."""
    text = "día: 数数🙂 a"
    assert not load_tokenizer(str(bpe_file)).dropped(text)
    bpe = tokenizers.models.BPE
    letters = {letter: number for number, letter in enumerate("dia: ")}
    vocabulary = {**letters, "</s>": 9}
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, bpe(vocabulary, [])))
    assert tokenizer.decode(tokenizer.encode(text)).split() == list("da:a")
    assert list(tokenizer.dropped(text).items()) == [("í", 1), ("数", 2), ("🙂", 1)]
    fallback = {**vocabulary, **{f"<0x{byte:02X}>": 10 + byte for byte in range(256)}}
    unknown = bpe({**vocabulary, "?": 10}, [], unk_token="?")
    for model in (bpe(fallback, [], byte_fallback=True), unknown):
        assert not load_tokenizer(write_tokenizer(tmp_path, model)).dropped(text)
    ends = {f"{letter}</w>": 20 + number for letter, number in letters.items()}
    suffixed = bpe({**vocabulary, **ends, "í</w>": 30}, [], end_of_word_suffix="</w>")
    assert list(load_tokenizer(write_tokenizer(tmp_path, suffixed)).dropped(text)) == ["数", "🙂"]


def test_what_is_between_words_is_not_dropped_text(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "</s>": 1}, []))
    backend.normalizer = tokenizers.normalizers.StripAccents()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert dict(tokenizer.dropped("a \n\u0301b")) == {"b": 1}


FOREIGN_CONFIGS = {
    b"[]": "a JSON object is expected, not list",
    b"null": "a JSON object is expected, not NoneType",
    b"": "is not readable JSON",
    b'{"eos_token": "<|endof': "is not readable JSON",
    b"\xff": "is not readable JSON",
    b"[" * 100_000: "is not readable JSON",
    b'{"eos_token": 3}': "eos_token=3 must be a token",
    b'{"eos_token": ["</s>"]}': "eos_token=['</s>'] must be a token",
    b'{"eos_token": {"content": null, "id": 2}}': None,
    b'{"eos_token": {"content": 3}}': "eos_token={'content': 3} must be a token",
    b'{"eos_token": "<stop>"}': "has no token '<stop>', the eos_token",
    b'\xef\xbb\xbf{"eos_token": "<|endoftext|>"}': None,
}


@pytest.mark.parametrize("content", FOREIGN_CONFIGS, ids=lambda content: repr(content[:20]))
def test_a_foreign_tokenizer_config_is_checked(bpe_file, tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + bpe_file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    message = FOREIGN_CONFIGS[content]
    if message is None:
        assert load_tokenizer(str(tmp_path / "tokenizer.json")).eod == 0
        return
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert "\n" not in str(error.value)


def test_a_damaged_tokenizer_is_one_line(bpe_file, tmp_path):
    whole = bpe_file.read_bytes()
    path = tmp_path / "tokenizer.json"
    panic = b'{"model": {"type": "BPE", "continuing_subword_prefix": "long", ' + (
        b'"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}'
    )
    cuts = [whole[:size] for size in range(0, len(whole) - 10, 100)]
    for content in (*cuts, b"[]", b"null", b"3", b"\xff\xfe", b"\0" * 9, panic):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is not a readable tokenizer\.json") as error:
            load_tokenizer(str(path))
        assert "\n" not in str(error.value)
