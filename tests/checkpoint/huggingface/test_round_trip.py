"""Import and export again: the same bits, in files that ``transformers`` reads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron_grow.checkpoint.huggingface.reader import HuggingFaceReader
from megatron_grow.checkpoint.huggingface.writer import HuggingFaceWriter
from megatron_grow.checkpoint.side_files import side_files
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.kinds import MAIN_PARAM
from tests.checkpoint.huggingface import models
from tests.checkpoint.huggingface.convert import blocks, export, values


def weights(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in directory.glob("*.safetensors"):
        found |= load_file(path)
    return found


def assert_same_bits(found: Path, expected: Path) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("name", models.MODELS)
def test_same_bits_and_same_function(name: str, tmp_path: Path) -> None:
    model = models.build(name)
    path = models.save(model, tmp_path / "theirs", max_shard_size="20KB")
    source = HuggingFaceReader(path)
    assert source.layout != "1 file"
    export(source, tmp_path / "ours", side_files=side_files(path), max_shard_size=15_000)
    assert_same_bits(tmp_path / "ours", path)
    again = models.load(tmp_path / "ours")
    assert type(again) is type(model)
    # Bit-equal: whatever config.json says of the function came back.
    ours, theirs = models.outputs(again), models.outputs(model)
    assert len(ours) == (2 if "PreTraining" in type(model).__name__ else 1)
    assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
    returned = HuggingFaceReader(tmp_path / "ours")
    assert returned.record.model == source.record.model


@pytest.mark.parametrize("most", [1, 37, 10**9])
def test_blocks_of_any_size_give_the_library_s_file(most: int, tmp_path: Path) -> None:
    small = {"n_embd": 8, "n_layer": 1, "vocab_size": 11, "n_positions": 5}
    path = models.save(models.build("gpt2", **small), tmp_path / "theirs")
    export(HuggingFaceReader(path), tmp_path / "ours", most)
    ours = tmp_path / "ours" / "model.safetensors"
    save_file(load_file(ours), tmp_path / "expected", metadata={"format": "pt"})
    assert ours.read_bytes() == (tmp_path / "expected").read_bytes()
    assert_same_bits(tmp_path / "ours", path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    path = models.save(models.build("llama 2", dtype), tmp_path / "theirs")
    source = HuggingFaceReader(path)
    # fp32 holds all of fp16; bf16 does not.
    assert source.record.precision == ("bf16" if dtype == torch.bfloat16 else "fp32")
    export(source, tmp_path / "ours", side_files=side_files(path))
    assert_same_bits(tmp_path / "ours", path)
    again = models.load(tmp_path / "ours")
    assert again.dtype == dtype


def test_layers_of_different_precision(tmp_path: Path) -> None:
    """Each logical tensor is read in what holds all of its layers exactly."""
    path = models.save(models.build("llama 2", torch.bfloat16), tmp_path / "theirs")
    exact = load_file(path / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    exact[name] = exact[name].float() + 1e-4
    save_file(exact, path / "model.safetensors", metadata={"format": "pt"})
    source = HuggingFaceReader(path)
    qkv = "decoder.layers.self_attention.linear_qkv.weight"
    assert source.dtype(qkv, MAIN_PARAM) == torch.float32
    assert source.dtype("output_layer.weight", MAIN_PARAM) == torch.bfloat16
    assert source.record.precision == "fp32"
    export(source, tmp_path / "ours")
    for name, tensor in weights(tmp_path / "ours").items():
        assert torch.equal(tensor, exact[name].to(tensor.dtype))
        assert torch.equal(tensor.to(exact[name].dtype), exact[name])
    assert json.loads((tmp_path / "ours/config.json").read_text())["torch_dtype"] == "float32"


def test_many_writers(tmp_path: Path) -> None:
    path = models.save(models.build("qwen3"), tmp_path / "theirs")
    source = HuggingFaceReader(path)
    dtypes = dict.fromkeys(source.tensors, torch.float32)
    writer = HuggingFaceWriter(
        tmp_path / "ours", source.record.model_config, dtypes, max_shard_size=9_000
    )
    writer.prepare()
    parts = [blocks(source, 200)[start::6] for start in range(6)]
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(writer.write, i, values(source, writer, part))
            for i, part in enumerate(parts)
        ]
        written = [job.result(timeout=60) for job in jobs]
    writer.finish(written)
    assert_same_bits(tmp_path / "ours", path)


def test_a_forgotten_part_is_noticed(tmp_path: Path) -> None:
    path = models.save(models.build("gpt2"), tmp_path / "theirs")
    source = HuggingFaceReader(path)
    dtypes = dict.fromkeys(source.tensors, torch.float32)
    writer = HuggingFaceWriter(tmp_path / "ours", source.record.model_config, dtypes)
    writer.prepare()
    written = writer.write(0, values(source, writer, blocks(source, 300)[1:]))
    with pytest.raises(RuntimeError, match="bytes of weights were written"):
        writer.finish([written])


def test_no_layers(tmp_path: Path) -> None:
    model = models.build("llama 2", num_hidden_layers=0)
    path = models.save(model, tmp_path / "theirs")
    source = HuggingFaceReader(path)
    assert source.record.model_config.num_layers == 0
    export(source, tmp_path / "ours")
    assert_same_bits(tmp_path / "ours", path)
    again = models.load(tmp_path / "ours")
    assert torch.equal(models.logits(again), models.logits(model))


def test_files_of_a_base_model(tmp_path: Path) -> None:
    """GPT-2's own files have no prefix, and hold the attention masks."""
    path = models.save(models.build("gpt2"), tmp_path / "theirs")
    stored = load_file(path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    bare["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(bare, path / "model.safetensors", metadata={"format": "pt"})
    export(HuggingFaceReader(path), tmp_path / "ours")
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    assert_same_bits(tmp_path / "ours", path)


def test_a_tied_head_that_is_stored_must_be_equal(tmp_path: Path) -> None:
    path = models.save(models.build("qwen2"), tmp_path / "theirs")
    stored = load_file(path / "model.safetensors")
    embedding = stored["model.embed_tokens.weight"]
    for change, accepted in ((0.0, True), (1e-3, False)):
        head = embedding.clone()
        head[70, 3] += change
        save_file({**stored, "lm_head.weight": head}, path / "model.safetensors")
        source = HuggingFaceReader(path)
        if accepted:
            export(source, tmp_path / "ours")
        else:
            with pytest.raises(UserError, match=r"lm_head\.weight differs from model\.embed"):
                export(source, tmp_path / "again")


def test_side_files_and_token_ids_come_along(tmp_path: Path) -> None:
    model = models.build("llama 2", eos_token_id=[5, 6], bos_token_id=4, pad_token_id=3)
    path = models.save(model, tmp_path / "theirs")
    texts = {"tokenizer.json": "{}", "chat_template.jinja": "{{ x }}", "LICENSE.txt": "free"}
    for name, text in {**texts, "optimizer.pt": "no", "README.md": "no"}.items():
        (path / name).write_text(text)
    source = HuggingFaceReader(path)
    assert set(side_files(path)) == {
        *texts,
        "config.json",
        "generation_config.json",
    }
    assert source.record.config["data"] == {"tokenizer": str(path / "tokenizer.json")}
    export(source, tmp_path / "ours", side_files=side_files(path))
    for name in (*texts, "generation_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (path / name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "ours").iterdir()) == sorted(
        [*texts, "config.json", "generation_config.json", "model.safetensors"]
    )
    config = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == ([5, 6], 4, 3)
