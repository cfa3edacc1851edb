"""A run's own tokenizer leaves with its model, and `transformers` reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from megatron_grow.checkpoint.open import open_reader
from megatron_grow.config.model import ModelConfig
from megatron_grow.convert.synthetic import SyntheticReader, write
from megatron_grow.data.tokenizers.load import load_tokenizer
from megatron_grow.data.tokenizers.train import train_bpe, train_word_piece
from tests.convert.toy import GPT, command

TEXT = "Über ½ naïve\n\ttabs 日本 don't  stop\x00\x7f"


def trained(directory: Path) -> dict[str, Any]:
    train_bpe([TEXT * 3], 300).save(str(directory / "bpe.json"))
    return {"tokenizer": str(directory / "bpe.json")}


def gpt2(directory: Path) -> dict[str, Any]:
    """GPT-2's two files, here of another vocabulary."""
    trained(directory)
    model = json.loads((directory / "bpe.json").read_text())["model"]
    (directory / "v.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (directory / "m.txt").write_text("\n".join(["#version: 0.2", *merges]))
    files = {"vocab_file": str(directory / "v.json"), "merge_file": str(directory / "m.txt")}
    return {"tokenizer": "gpt2", **files}


KINDS = {"bytes": lambda _: {"tokenizer": "bytes"}, "trained": trained, "gpt2": gpt2}


def export(data: dict[str, Any], model: ModelConfig, directory: Path) -> Path:
    source = SyntheticReader(model, optimizer=None)
    source.record = replace(source.record, config={**source.record.config, "data": data})
    assert command("export-hf", write(directory / "run", source), directory / "hf") == 0
    return directory / "hf"


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_makes_the_same_tokens(kind: str, tmp_path: Path) -> None:
    data = KINDS[kind](tmp_path)
    ours = load_tokenizer(**data)
    path = export(data, replace(GPT, vocab_size=ours.vocab_size), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    assert theirs(TEXT)["input_ids"] == ours.encode(TEXT)
    assert theirs.decode(ours.encode(TEXT)) == TEXT
    assert (theirs.eos_token_id, theirs.eos_token) == (ours.eod, ours.eod_token)
    assert theirs(f"a{ours.eod_token}")["input_ids"][-1] == ours.eod
    assert theirs.model_max_length == GPT.max_position_embeddings
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == ours.eod


def words(directory: Path) -> str:
    """A trained vocabulary of word pieces, as its tokenizer.json."""
    texts = ["the cat sat on the mat", "a dog ran to the cat"] * 4
    path = directory / "words-tokenizer.json"
    train_word_piece(lambda: texts, 70, lower_case=True).save(str(path))
    return str(path)


def vocabulary(directory: Path) -> str:
    """The same as a vocab.txt."""
    pieces = json.loads(Path(words(directory)).read_text())["model"]["vocab"]
    path = directory / "words.txt"
    path.write_text("\n".join(sorted(pieces, key=pieces.__getitem__)))
    return str(path)


@pytest.mark.parametrize("kind", [words, vocabulary])
def test_transformers_fills_masks(kind: Callable[[Path], str], tmp_path: Path) -> None:
    tokenizer = kind(tmp_path)
    ours = load_tokenizer(tokenizer)
    model = replace(GPT, architecture="bert", vocab_size=ours.vocab_size)
    path = export({"tokenizer": tokenizer}, model, tmp_path)
    config = transformers.AutoConfig.from_pretrained(path)
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    pad, cls, sep, mask = theirs.convert_tokens_to_ids(special)
    assert not (path / "generation_config.json").exists()
    said = json.loads((path / "config.json").read_text())
    ends = {"bos_token_id", "eos_token_id"}
    assert not ends & said.keys() and (theirs.bos_token, theirs.eos_token) == (None, None)
    assert (config.pad_token_id, theirs.pad_token_id, theirs.mask_token_id) == (pad, pad, mask)
    before, after = ours.encode("The cat"), ours.encode("on a mat")
    expected = [cls, *before, mask, *after, sep]
    assert theirs("The cat [MASK] on a mat")["input_ids"] == expected
    fill = transformers.pipeline("fill-mask", model=str(path))
    found = fill("The cat [MASK] on a mat", top_k=3)
    with torch.no_grad():
        logits = fill.model(torch.tensor([expected])).logits[0, 1 + len(before)]
    assert [guess["token"] for guess in found] == logits.topk(3).indices.tolist()
    # Into a run again, it names the tokenizer that was written.
    again = open_reader(path).record.config["data"]["tokenizer"]
    assert load_tokenizer(again).encode("The cat") == before


def test_a_tokenizer_that_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = export({"tokenizer": str(tmp_path / "gone.json")}, GPT, tmp_path)
    assert "no tokenizer is known; --side-files" in capsys.readouterr().out
    assert not (path / "tokenizer.json").exists()


def test_side_files_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("export-hf", "SRC", "DST", "--side-files", "/nowhere") == 2
    assert capsys.readouterr().err == "error: side_files=/nowhere is not a directory\n"


def test_side_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "run", SyntheticReader(GPT, optimizer=None))
    (tmp_path / "beside").mkdir()
    config = tmp_path / "beside" / "config.json"
    config.write_text("{half")
    options = ("--side-files", config.parent)
    assert command("export-hf", source, tmp_path / "hf", *options) == 2
    assert f"{config} cannot be read as JSON" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()
