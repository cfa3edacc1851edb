"""Another layout, another precision: the same values, read by torch's own reader."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megatron_grow.checkpoint.layout import TRACKER
from megatron_grow.checkpoint.manifest import read_manifest
from megatron_grow.checkpoint.root import latest
from megatron_grow.config.model import ModelConfig
from megatron_grow.convert.synthetic import SyntheticReader, write
from tests.convert.toy import GPT, LLAMA, by_torch, command, equal
from tests.distributed import run_ranks

STEP = "iter_0000010"


ODD = replace(GPT, vocab_size=61, make_vocab_size_divisible_by=1)
"""Of which two ranks cannot have equal shares."""


@pytest.mark.parametrize("model", [GPT, LLAMA, ODD], ids=["GPT", "LLaMA", "odd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adam", "muon", None])
def test_there_and_back(
    model: ModelConfig, precision: str, optimizer: str | None, tmp_path: Path
) -> None:
    source = write(tmp_path / "a", SyntheticReader(model, precision=precision, optimizer=optimizer))
    layout = ("--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2)
    assert command("reshard", source, tmp_path / "b", *layout) == 0
    assert command("reshard", tmp_path / "b", tmp_path / "c") == 0
    truth = by_torch(source)
    assert equal(by_torch(tmp_path / "b" / STEP), truth)
    assert equal(by_torch(tmp_path / "c" / STEP), truth)
    for name in ("megatron_grow.json", "metadata.json"):
        assert (tmp_path / "c" / STEP / name).read_bytes() == (source / name).read_bytes()
    assert latest(tmp_path / "c") == tmp_path / "c" / STEP


def test_an_odd_vocabulary_in_the_legacy_format(tmp_path: Path) -> None:
    source = write(tmp_path / "a", SyntheticReader(ODD, optimizer=None))
    layout = ("--tensor-model-parallel-size", 4, "--format", "torch")
    assert command("reshard", source, tmp_path / "b", *layout) == 0
    assert command("reshard", tmp_path / "b", tmp_path / "c") == 0
    assert equal(by_torch(tmp_path / "c" / STEP), by_torch(source))
    shares = [
        torch.load(path, weights_only=False)["model"]["embedding.word_embeddings.weight"].shape
        for path in sorted((tmp_path / "b" / STEP).glob("*/*.pt"))
    ]
    assert shares == [(16, 16)] * 4


def test_a_checkpoint_that_stores_its_padding(tmp_path: Path) -> None:
    """As Megatron-LM writes it, and as versions before this one did."""
    path = write(tmp_path / "a", SyntheticReader(replace(GPT, vocab_size=64)))
    truth = by_torch(path)
    text = (path / "megatron_grow.json").read_text()
    assert text.count('"vocab_size": 64') == 2
    (path / "megatron_grow.json").write_text(text.replace('"vocab_size": 64', '"vocab_size": 61'))
    (path / "manifest.json").unlink()
    assert command("reshard", path, tmp_path / "b") == 0
    found = by_torch(tmp_path / "b" / STEP)
    assert {len(values) for name, values in found.items() if "word_embeddings" in name} == {61}
    assert all(torch.equal(values, truth[name][: len(values)]) for name, values in found.items())
    assert command("verify", path, tmp_path / "b") == 0


def test_what_is_read_is_what_is_stored(tmp_path: Path) -> None:
    """The other tests' source: every kind of state, at its place in Megatron's shapes."""
    synthetic = SyntheticReader(LLAMA, precision="bf16")
    stored = by_torch(write(tmp_path, synthetic))
    for key, tensor in synthetic.tensors.items():
        whole = tuple((0, size) for size in tensor.shape)
        for kind in synthetic.kinds(key):
            values = synthetic.read(key, kind, whole).view(tensor.checkpoint_shape)
            name = "param" if kind == "main_param" else kind
            assert torch.equal(stored[f"optimizer.state.{name}.{key}"], values)
            if kind == "main_param":
                assert torch.equal(stored[key], values.bfloat16())


def test_chunks_are_those_of_the_layout(tmp_path: Path) -> None:
    """A rank finds its shard in chunks of its own, so that it reads no other's bytes."""
    source = write(tmp_path / "a", SyntheticReader(LLAMA))
    command("reshard", source, tmp_path / "b", "--tensor-model-parallel-size", 2)
    metadata = dcp.FileSystemReader(tmp_path / "b" / STEP).read_metadata().state_dict_metadata

    def chunks(key: str) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
        return {(tuple(c.offsets), tuple(c.sizes)) for c in metadata[key].chunks}

    assert chunks("embedding.word_embeddings.weight") == {((0, 0), (32, 16)), ((32, 0), (28, 16))}
    by_gate_and_rank = {((0, row, 0), (1, 12, 16)) for row in (0, 12, 24, 36)}
    found = chunks("decoder.layers.mlp.linear_fc1.weight")
    assert {((0, *offset[1:]), (1, *size[1:])) for offset, size in found} == by_gate_and_rank
    found = chunks("decoder.layers.mlp.linear_fc2.weight")
    assert {(offset[1:], size[1:]) for offset, size in found} == {
        ((0, 0), (16, 12)),
        ((0, 12), (16, 12)),
    }


def test_megatron_lm_is_told_of_the_new_layout(tmp_path: Path) -> None:
    source = write(tmp_path / "a", SyntheticReader(LLAMA))
    layout = ("--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 4)
    assert command("reshard", source, tmp_path / "b", *layout) == 0
    for directory, expected in ((source, (1, 1)), (tmp_path / "b" / STEP, (2, 4))):
        with torch.serialization.safe_globals([Namespace]):
            args = torch.load(directory / "common.pt", weights_only=True)["args"]
        found = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
        assert found == expected
        assert (args.num_layers, args.iteration) == (4, 10)


def convert_on_ranks(source: str, target: str) -> int:
    return command("reshard", source, target, "--tensor-model-parallel-size", 2, "--threads", 1)


def test_the_bytes_do_not_depend_on_who_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a", SyntheticReader(LLAMA, precision="bf16"))
    assert convert_on_ranks(str(source), str(tmp_path / "one")) == 0
    assert (
        command(
            "reshard", source, tmp_path / "four", "--tensor-model-parallel-size", 2, "--threads", 4
        )
        == 0
    )
    assert run_ranks(3, convert_on_ranks, str(source), str(tmp_path / "three")) == [0, 0, 0]
    one = tmp_path / "one" / STEP
    for other in ("four", "three"):
        directory = tmp_path / other / STEP
        assert {p.name for p in directory.iterdir()} == {p.name for p in one.iterdir()}
        for path in one.iterdir():
            assert (directory / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_manifest(tmp_path: Path) -> None:
    """It does not depend on the layout; of two states, it differs where they differ."""
    source = write(tmp_path / "a", SyntheticReader(LLAMA))
    command("reshard", source, tmp_path / "b", "--tensor-model-parallel-size", 2)
    manifests = [read_manifest(path) for path in (source, tmp_path / "b" / STEP)]
    assert manifests[0] and manifests[1]
    tensors = manifests[0].tensors
    assert tensors == manifests[1].tensors
    assert tensors.keys() == by_torch(source).keys()
    for name, values in by_torch(source).items():
        assert tensors[name].shape == tuple(values.shape)
        assert tensors[name].dtype == "float32"
    assert len({entry.digest for entry in tensors.values()}) == len(tensors)
    (tmp_path / "b" / TRACKER).write_text("11")
    (tmp_path / "b" / STEP).rename(tmp_path / "b" / "iter_0000011")
    assert command("inspect", tmp_path / "b", "--check") == 0


def test_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = write(tmp_path / "a", SyntheticReader(GPT, optimizer=None))
    truth = by_torch(weights)
    assert command("reshard", weights, tmp_path / "b", "--precision", "bf16") == 2
    assert "lose bits" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    rounds = ("--precision", "bf16", "--allow-rounding")
    assert command("reshard", weights, tmp_path / "b", *rounds) == 0
    rounded = by_torch(tmp_path / "b" / STEP)
    assert equal(rounded, {name: values.bfloat16() for name, values in truth.items()})
    assert command("reshard", tmp_path / "b", tmp_path / "c", "--precision", "fp32") == 0
    widened = by_torch(tmp_path / "c" / STEP)
    assert equal(widened, {name: values.float() for name, values in rounded.items()})
    # With an optimizer, weights are kept in fp32 as well: nothing is lost.
    trained = write(tmp_path / "d", SyntheticReader(GPT))
    assert command("reshard", trained, tmp_path / "e", "--precision", "bf16") == 0
    assert command("reshard", tmp_path / "e", tmp_path / "f", "--precision", "fp32") == 0
    assert equal(by_torch(tmp_path / "f" / STEP), by_torch(trained))
