"""From any format to any other, and what the comparison of two checkpoints says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_grow.checkpoint.open import open_source
from megatron_grow.convert.synthetic import SyntheticSource, write
from tests.convert.toy import GPT, LLAMA, by_torch, command, equal

STEP = "iter_0000010"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA in the midst of training, in bf16, with a vocabulary that live ranks pad."""
    return write(tmp_path_factory.mktemp("trained"), SyntheticSource(LLAMA, precision="bf16"))


def weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values for name, values in state.items() if not name.startswith("optimizer.")}


def test_once_around(trained: Path, tmp_path: Path) -> None:
    """torch_dist, legacy, Hugging Face, torch_dist: the weights of bf16 training, bit for bit."""
    layout = ("--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2)
    legacy = ("--format", "torch", "--weights-only", "--virtual-pipeline-model-parallel-size", 2)
    assert command("reshard", trained, tmp_path / "legacy", *layout, *legacy) == 0
    assert command("export-hf", tmp_path / "legacy", tmp_path / "hf") == 0
    assert command("import-hf", tmp_path / "hf", tmp_path / "again", *layout) == 0
    for a, b in (("legacy", "hf"), ("hf", "again"), ("legacy", "again")):
        assert command("verify", tmp_path / a, tmp_path / b, "--weights-only") == 0
    assert command("verify", trained, tmp_path / "legacy", "--weights-only") == 0
    again = by_torch(tmp_path / "again" / "iter_0000000")
    assert equal(again, weights(by_torch(trained)))


def test_growing_on_the_way(trained: Path, tmp_path: Path) -> None:
    """A growth while the format changes is the growth, and then the change."""
    (tmp_path / "grow.yaml").write_text(
        "[{model: {num_layers: 8}, grow: {depth: copying_stack}},"
        " {model: {hidden_size: 32, num_attention_heads: 8, num_query_groups: 4,"
        " kv_channels: 4, ffn_hidden_size: 48}, grow: {recipe: hypercloning}}]"
    )
    grows = ("--grow", tmp_path / "grow.yaml")
    assert command("grow", trained, tmp_path / "a", *grows) == 0
    record = json.loads((tmp_path / "a" / STEP / "megatron_grow.json").read_text())
    assert [event["summary"].split(" by ")[0] for event in record["growths"]] == [
        "4 -> 8 layers",
        "16 -> 32 hidden_size",
    ]
    assert (record["model"]["num_layers"], record["model"]["hidden_size"]) == (8, 32)
    legacy = ("--format", "torch", "--weights-only", "--tensor-model-parallel-size", 4)
    assert command("grow", trained, tmp_path / "b", *grows, *legacy) == 0
    # Without fp32 main parameters the rounded ones grow.
    assert command("verify", tmp_path / "a", tmp_path / "b", "--weights-only") == 0
    assert command("verify", tmp_path / "a", tmp_path / "a") == 0
    one = tmp_path / "one.yaml"
    one.write_text("{model: {num_layers: 8}, grow: {depth: copying_stack}}")
    assert command("grow", trained, tmp_path / "c", "--grow", one) == 0
    stacked, source = by_torch(tmp_path / "c" / STEP), by_torch(trained)
    for name, values in source.items():
        twice = torch.cat([values, values]) if "decoder.layers." in name else values
        assert torch.equal(stacked[name], twice), name


def test_a_hugging_face_model_is_cut_into_shards(trained: Path, tmp_path: Path) -> None:
    options = ("--max-shard-size", 0.000006, "--family", "llama")
    assert command("export-hf", trained, tmp_path / "hf", *options) == 0
    shards = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    assert len(shards) > 2
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    for shard in shards:
        for name in load_file(shard):
            assert index["weight_map"][name] == shard.name
    assert command("verify", trained, tmp_path / "hf", "--weights-only") == 0


def test_a_comparison_finds_one_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Other(SyntheticSource):
        def read(self, key: str, kind: str, box: tuple) -> torch.Tensor:
            values = super().read(key, kind, box)
            if key.endswith("fc1.weight") and kind == "exp_avg":
                values[1, 2, 3] += 0.5
            return values

    a = write(tmp_path / "a", SyntheticSource(GPT))
    b = write(tmp_path / "b", Other(GPT))
    assert command("verify", a, b) == 1
    said = capsys.readouterr().out
    assert "exp_avg of decoder.layers.mlp.linear_fc1.weight: 1 of" in said
    assert "by at most 0.5" in said
    assert "not the same training state" in said
    assert command("verify", a, b, "--weights-only") == 0

    class OtherBits(SyntheticSource):
        """Holds a zero and a NaN; negated, the zero differs in its bits alone."""

        sign = 1.0

        def read(self, key: str, kind: str, box: tuple) -> torch.Tensor:
            values = super().read(key, kind, box)
            if key.endswith("final_layernorm.weight") and kind == "exp_avg":
                values[:2] = torch.tensor([self.sign * 0.0, math.nan])
            return values

    zero, negative = OtherBits(GPT), OtherBits(GPT)
    negative.sign = -1.0
    f, g = write(tmp_path / "f", zero), write(tmp_path / "g", negative)
    assert command("verify", f, f) == 0
    assert command("verify", f, g) == 1
    assert "exp_avg of decoder.final_layernorm.weight: 1 of 16 values" in capsys.readouterr().out
    c = write(tmp_path / "c", SyntheticSource(GPT, optimizer=None))
    assert command("verify", a, c) == 1
    assert f"is in {a} alone" in capsys.readouterr().out
    d = write(tmp_path / "d", SyntheticSource(replace(GPT, activation="squared_relu")))
    assert command("verify", a, d) == 1
    assert "model.activation: gelu and squared_relu" in capsys.readouterr().out
    e = write(tmp_path / "e", SyntheticSource(GPT, step=11))
    assert command("verify", a, e) == 1
    assert "step: 10 and 11" in capsys.readouterr().out


def test_an_inspection(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("inspect", trained, "--check") == 0
    said = capsys.readouterr().out
    parameters = sum(v.numel() for v in weights(by_torch(trained)).values())
    for part in (
        f"{parameters:,} parameters",
        "step 10",
        "bf16",
        "exp_avg, exp_avg_sq",
        "4 x 32 x 16",
    ):
        assert part in said
    stored = len(by_torch(trained))
    assert f"all {stored} stored tensors agree with the manifest" in said
    manifest = trained / "manifest.json"
    before = manifest.read_text()
    first = next(iter(json.loads(before)["tensors"].values()))["digest"]
    manifest.write_text(before.replace(first, "0" * len(first)))
    try:
        assert command("inspect", trained) == 0
        assert command("inspect", trained, "--check") == 2
        assert "is not what its manifest says" in capsys.readouterr().err
    finally:
        manifest.write_text(before)


def test_optimizer_state_is_never_dropped_unsaid(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("reshard", trained, tmp_path / "a", "--format", "torch") == 2
    assert "--weights-only" in capsys.readouterr().err
    assert command("export-hf", trained, tmp_path / "b") == 0
    assert "no optimizer state" in capsys.readouterr().out
    assert command("reshard", trained, tmp_path / "c", "--weights-only") == 0
    assert equal(by_torch(tmp_path / "c" / STEP), weights(by_torch(trained)))
    source = open_source(tmp_path / "c")
    assert all(source.kinds(key) == ("main_param",) for key in source.tensors)


@pytest.mark.parametrize("format_", ["legacy", "hf"])
def test_the_manifest_proves_every_format(
    format_: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A safetensors file has no checksums of its own: one flipped bit is found by the digest."""
    if format_ == "hf":
        assert command("export-hf", trained, tmp_path / "a") == 0
    else:
        options = ("--format", "torch", "--weights-only")
        assert command("reshard", trained, tmp_path / "a", *options) == 0
    assert command("inspect", tmp_path / "a", "--check") == 0
    assert "stored tensors agree with the manifest" in capsys.readouterr().out
    (path,) = [*(tmp_path / "a").rglob("*.safetensors"), *(tmp_path / "a").rglob("*.pt")]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert command("inspect", tmp_path / "a", "--check") == 2
