"""From any format to any other, and what the comparison of two checkpoints says."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file

from megatron_grow.checkpoint.open import open_reader
from megatron_grow.convert.compare import less_precise
from megatron_grow.convert.forward import compare_logits
from megatron_grow.convert.synthetic import SyntheticReader, write
from tests.convert.toy import GPT, LLAMA, by_torch, command, equal
from tests.distributed import run_ranks

STEP = "iter_0000010"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA in the midst of training, in bf16, with a vocabulary that live ranks pad."""
    return write(tmp_path_factory.mktemp("trained"), SyntheticReader(LLAMA, precision="bf16"))


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


def test_a_reshard_writes_what_an_export_does(trained: Path, tmp_path: Path) -> None:
    options = ("{format: huggingface, max_shard_size: 0.00001}", "--weights-only")
    assert command("reshard", trained, tmp_path / "a", "--format", *options) == 0
    assert command("export-hf", trained, tmp_path / "b", "--max-shard-size", "0.00001") == 0
    files = [{f.name: f.read_bytes() for f in (tmp_path / x).iterdir()} for x in "ab"]
    assert files[0] == files[1] and sum(name.endswith(".safetensors") for name in files[0]) > 1
    assert command("reshard", trained, tmp_path / "c", "--format", "huggingface") == 2


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
    class Other(SyntheticReader):
        def read(self, key: str, kind: str, box: tuple) -> torch.Tensor:
            values = super().read(key, kind, box)
            if key.endswith("fc1.weight") and kind == "exp_avg":
                values[1, 2, 3] += 0.5
            return values

    a = write(tmp_path / "a", SyntheticReader(GPT))
    b = write(tmp_path / "b", Other(GPT))
    assert command("verify", a, b) == 1
    said = capsys.readouterr().out
    assert "exp_avg of decoder.layers.mlp.linear_fc1.weight: 1 of" in said
    assert "by at most 0.5" in said
    assert "not the same training state" in said
    assert command("verify", a, b, "--weights-only") == 0

    class OtherBits(SyntheticReader):
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
    c = write(tmp_path / "c", SyntheticReader(GPT, optimizer=None))
    assert command("verify", a, c) == 1
    assert f"is in {a} alone" in capsys.readouterr().out
    d = write(tmp_path / "d", SyntheticReader(replace(GPT, activation="squared_relu")))
    assert command("verify", a, d) == 1
    assert "model.activation: gelu and squared_relu" in capsys.readouterr().out
    e = write(tmp_path / "e", SyntheticReader(GPT, step=11))
    assert command("verify", a, e) == 1
    assert "step: 10 and 11" in capsys.readouterr().out


def test_values_are_compared_across_types(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model published in fp16 is imported in fp32, which holds all its values."""
    options = ("--precision", "fp16", "--allow-rounding")
    write(tmp_path / "a", SyntheticReader(LLAMA, optimizer=None))
    assert command("export-hf", tmp_path / "a", tmp_path / "hf", *options) == 0
    assert command("import-hf", tmp_path / "hf", tmp_path / "b") == 0
    tensors = len(by_torch(tmp_path / "b" / "iter_0000000"))
    capsys.readouterr()
    assert command("verify", tmp_path / "hf", tmp_path / "b") == 0
    said = capsys.readouterr().out
    assert f"note: {tensors} equal tensors are stored as float16 and as float32" in said
    assert f"{tensors} tensors are equal; the same training state" in said
    # In fp32 the source has values that fp16 has not.
    assert command("verify", tmp_path / "a", tmp_path / "b") == 1
    assert "values differ, by at most" in capsys.readouterr().out
    assert command("verify", tmp_path / "a", tmp_path / "hf", "--weights-only") == 0


def test_less_precise_is_of_fewer_digits() -> None:
    fp32, bf16, fp16 = torch.float32, torch.bfloat16, torch.float16
    assert less_precise(fp32, fp16) == less_precise(fp16, fp32) == fp16
    assert less_precise(bf16, fp16) == less_precise(fp16, bf16) == bf16


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        ([math.nan, 0.0], [1.0, 0.0], "1 of 16 values differ, by at most nan"),
        ([1.0, math.nan], [3.0, 0.0], "2 of 16 values differ, by at most nan"),
        ([math.nan, 0.0], [math.nan, 2.0], "1 of 16 values differ, by at most 2"),
        ([math.inf, 0.0], [math.inf, 2.0], "1 of 16 values differ, by at most 2"),
        ([math.inf, 0.0], [1.0, 0.0], "1 of 16 values differ, by at most inf"),
        ([0.0, 1.0], [-0.0, 1.0], "1 of 16 values differ, 0.0 and -0.0"),
    ],
)
def test_a_difference_that_is_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], x: list, y: list, told: str
) -> None:
    class Holding(SyntheticReader):
        values = torch.zeros(2)

        def read(self, key: str, kind: str, box: tuple) -> torch.Tensor:
            values = super().read(key, kind, box)
            if key.endswith("final_layernorm.weight"):
                values[:2] = self.values
            return values

    for name, two in (("a", x), ("b", y)):
        source = Holding(GPT, optimizer=None)
        source.values = torch.tensor(two)
        write(tmp_path / name, source)
    assert command("verify", tmp_path / "a", tmp_path / "b") == 1
    assert told in capsys.readouterr().out


def test_functions_are_compared_in_fp32(trained: Path, tmp_path: Path) -> None:
    """Weights in bf16, in the engine and in transformers: bf16 arithmetic is 1e-3 off and more."""
    assert command("export-hf", trained, tmp_path / "hf") == 0
    assert command("import-hf", tmp_path / "hf", tmp_path / "again") == 0

    class Other(SyntheticReader):
        """One weight in a thousand of its own, or none."""

        factor = 1.001

        def read(self, key: str, kind: str, box: tuple) -> torch.Tensor:
            values = super().read(key, kind, box)
            return values * self.factor if key.endswith("final_layernorm.weight") else values

    other, broken = Other(LLAMA, precision="bf16"), Other(LLAMA, precision="bf16")
    broken.factor = math.nan
    pairs = [
        (trained, tmp_path / "hf"),
        (tmp_path / "hf", tmp_path / "again"),
        (trained, write(tmp_path / "other", other)),
        (trained, write(tmp_path / "broken", broken)),
    ]
    ((exported, imported, scaled, nan),) = run_ranks(1, _apart, pairs)
    assert 0 < exported < 1e-5
    assert 0 < imported < 1e-5
    assert scaled == pytest.approx(0.001, rel=0.02)  # the largest logit is a thousandth larger
    assert math.isnan(nan)


@pytest.mark.parametrize("content", [b"", b"\xff", None])
def test_a_text_that_cannot_be_read(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    assert command("verify", trained, trained, "--forward", "--text", tmp_path / "text") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --text ") and said.count("\n") == 1


def test_a_text_that_nobody_reads(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("verify", trained, trained, "--text", "a.txt") == 2
    assert "pass --forward as well" in capsys.readouterr().err


def _more_tokens(a: Path, b: Path) -> tuple[float, str]:
    apart, _, told = compare_logits(open_reader(a), open_reader(b))
    return apart, told


def test_logits_of_the_tokens_that_both_know(trained: Path, tmp_path: Path) -> None:
    """A vocabulary that has grown; the new token is where padding was."""
    grows = ("--grow", tmp_path / "grow.yaml", "--weights-only")
    (tmp_path / "grow.yaml").write_text("{model: {vocab_size: 61}, grow: {vocab: mean}}")
    assert command("grow", trained, tmp_path / "grown", *grows) == 0
    [(apart, told)] = run_ranks(1, _more_tokens, trained, tmp_path / "grown")
    assert apart == 0.0
    assert told.endswith(", for the 60 tokens that both know,")


def _apart(pairs: list[tuple[Path, Path]]) -> list[float]:
    return [compare_logits(open_reader(a), open_reader(b))[0] for a, b in pairs]


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


@pytest.mark.parametrize("legacy", [False, True])
def test_an_earlier_version_padded_the_vocabulary(
    legacy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables of 64 rows, their digests over all of these, for a model of 60 tokens."""
    path = write(tmp_path / "a", SyntheticReader(replace(LLAMA, vocab_size=64), optimizer=None))
    if legacy:
        assert command("reshard", path, tmp_path / "b", "--format", "torch") == 0
        path = tmp_path / "b" / STEP
    record, manifest = path / "megatron_grow.json", json.loads((path / "manifest.json").read_text())
    record.write_text(record.read_text().replace('"vocab_size": 64', '"vocab_size": 60'))
    manifest["files"][record.name] = blake3(record.read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert command("inspect", path, "--check") == 0
    said = capsys.readouterr().out
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert f"note: {name} is readable; its digest is of an earlier version" in said
    assert "all 7 stored tensors agree with the manifest" in said
    manifest["tensors"]["decoder.final_layernorm.weight"]["digest"] = "0" * 64
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert command("inspect", path, "--check") == 2


@pytest.mark.parametrize("name", ["common.pt", "metadata.json", "megatron_grow.json"])
def test_an_inspection_reads_all_small_files(
    name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a"
    shutil.copytree(trained, path)
    (path / name).write_bytes(bytes(100))
    assert command("inspect", path) == 2
    assert f"{name} is damaged" in capsys.readouterr().err
    if name == "common.pt":  # megatron-core's own mark, and ours, say that nothing is there at all
        (path / name).unlink()
        assert command("inspect", path) == 2
        assert f"{name} is missing: the checkpoint is not complete" in capsys.readouterr().err


def test_optimizer_state_is_never_dropped_unsaid(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("reshard", trained, tmp_path / "a", "--format", "torch") == 2
    assert "--weights-only" in capsys.readouterr().err
    assert command("export-hf", trained, tmp_path / "b") == 0
    assert "no optimizer state" in capsys.readouterr().out
    assert command("reshard", trained, tmp_path / "c", "--weights-only") == 0
    assert equal(by_torch(tmp_path / "c" / STEP), weights(by_torch(trained)))
    source = open_reader(tmp_path / "c")
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
