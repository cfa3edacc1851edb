"""A run's own tokenizer leaves with its model, and `transformers` reads it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron_grow.config.model import ModelConfig
from megatron_grow.convert.synthetic import SyntheticReader, write
from megatron_grow.data.tokenizers.load import load_tokenizer
from megatron_grow.data.tokenizers.train import train_bpe
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
