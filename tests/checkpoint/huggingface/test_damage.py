"""Files that are not whole, not sound, or not what they seem: one clear line each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from megatron_grow.checkpoint.huggingface.reader import HuggingFaceReader
from megatron_grow.checkpoint.huggingface.writer import HuggingFaceWriter
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import full
from megatron_grow.state.kinds import MAIN_PARAM
from tests.checkpoint.huggingface import models
from tests.checkpoint.huggingface.convert import blocks, values


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return models.save(models.build("llama 2"), tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return models.save(models.build("llama 2"), tmp_path / "model", max_shard_size="20KB")


def _edit(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        stored = load_file(path / "model.safetensors")
        change(stored)
        save_file(stored, path / "model.safetensors")

    return damage


def _to_pickle(path: Path) -> None:
    stored = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(stored, path / "pytorch_model.bin")


def _say(**changes: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        said = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**said, **changes}))

    return damage


NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
SINGLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda p: (p / "config.json").unlink(), r"config\.json is missing"),
    "config not JSON": (
        lambda p: (p / "config.json").write_text("{"),
        r"config\.json cannot be read as JSON",
    ),
    "config a list": (lambda p: (p / "config.json").write_text("[]"), "holds list, not a JSON"),
    "no weights": (
        lambda p: (p / "model.safetensors").unlink(),
        r"holds neither model\.safetensors nor",
    ),
    "pickle": (_to_pickle, r"pytorch_model\.bin is a pickle.*save_pretrained"),
    "empty": (
        lambda p: os.truncate(p / "model.safetensors", 0),
        r"model\.safetensors is truncated or damaged",
    ),
    "truncated": (
        lambda p: os.truncate(p / "model.safetensors", 30_000),
        r"model\.safetensors is truncated or damaged",
    ),
    "missing tensor": (_edit(lambda t: t.pop(NORM)), f"tensor {NORM} is missing"),
    "missing head": (_edit(lambda t: t.pop("lm_head.weight")), r"lm_head\.weight is missing"),
    "unknown tensor": (
        _edit(lambda t: t.update({"score.weight": torch.ones(2)})),
        r"tensor score\.weight is not known in llama",
    ),
    "wrong shape": (
        _edit(lambda t: t.update({NORM: torch.ones(31)})),
        rf"{NORM} has shape \(31,\); config\.json asks for \(32,\)",
    ),
    "quantized": (
        _edit(lambda t: t.update({NORM: torch.ones(32, dtype=torch.int8)})),
        f"{NORM} is stored as I8; F32, F16, BF16 can be read",
    ),
    "fp64": (_edit(lambda t: t.update({NORM: t[NORM].double()})), f"{NORM} is stored as F64"),
    "another vocabulary": (_say(vocab_size=97), r"has shape \(96, 32\).* asks for \(97, 32\)"),
    "another depth": (_say(num_hidden_layers=3), r"layers\.2\..* is missing, and 8 more"),
    "a hundred thousand layers": (
        _say(num_hidden_layers=10**5),
        "100000 layers, but there are 21",
    ),
    "a billion layers": (_say(num_hidden_layers=10**9), "num_layers=1000000000 must be"),
}


@pytest.mark.parametrize("what", SINGLE)
def test_damage_is_named(what: str, single: Path) -> None:
    damage, message = SINGLE[what]
    HuggingFaceReader(single)
    damage(single)
    with pytest.raises(UserError, match=message) as caught:
        HuggingFaceReader(single)
    assert "\n" not in str(caught.value)


def _index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        index = json.loads((path / "model.safetensors.index.json").read_text())
        change(index["weight_map"])
        (path / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


SHARDED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (
        lambda p: next(p.glob("model-00002-*")).unlink(),
        r"model-00002-of-.* is missing: the model is not complete",
    ),
    "truncated file": (
        lambda p: os.truncate(next(p.glob("model-00002-*")), 999),
        "model-00002-of-.* is truncated or damaged",
    ),
    "outside": (
        _index(lambda t: t.update({NORM: "../other.safetensors"})),
        r"is in '\.\./other\.safetensors', not a file beside it",
    ),
    "not in the index": (_index(lambda t: t.pop(NORM)), f"{NORM} is not in model"),
    "only in the index": (
        _index(lambda t: t.update({"x": t[NORM]})),
        r"x is only in model\.safetensors\.index\.json",
    ),
    "no table": (
        lambda p: (p / "model.safetensors.index.json").write_text("{}"),
        "has no table weight_map",
    ),
}


@pytest.mark.parametrize("what", SHARDED)
def test_damage_of_a_sharded_model_is_named(what: str, sharded: Path) -> None:
    damage, message = SHARDED[what]
    HuggingFaceReader(sharded)
    damage(sharded)
    with pytest.raises(UserError, match=message):
        HuggingFaceReader(sharded)


def test_truncation_after_opening(single: Path) -> None:
    source = HuggingFaceReader(single)
    os.truncate(single / "model.safetensors", 30_000)
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or damaged"):
        source.read(
            "decoder.final_layernorm.weight",
            MAIN_PARAM,
            full(source.tensors["decoder.final_layernorm.weight"].shape),
        )


def test_a_disk_that_cannot_be_written(single: Path, tmp_path: Path) -> None:
    source = HuggingFaceReader(single)
    dtypes = dict.fromkeys(source.tensors, torch.float32)
    writer = HuggingFaceWriter(tmp_path / "ours", source.record.model_config, dtypes)
    writer.prepare()
    (tmp_path / "ours" / "model.safetensors").unlink()
    (tmp_path / "ours" / "model.safetensors").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        writer.write(0, values(source, writer, blocks(source, 300)))


# Headers, index and config.json. The format has no checksum of the values themselves.
@given(data=st.data())
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_damage_is_refused_or_harmless(
    data: st.DataObject, corruptible: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    """No other exception, and no other values."""
    directory, weights = corruptible
    name = data.draw(st.sampled_from(sorted(path.name for path in directory.iterdir())))
    path = directory / name
    intact = path.read_bytes()
    header = 8 + int.from_bytes(intact[:8], "little") if name.endswith("safetensors") else None
    at = data.draw(st.integers(0, (header or len(intact)) - 1))
    if data.draw(st.booleans()):
        damaged = intact[:at]
    else:
        flipped = intact[at] ^ data.draw(st.integers(1, 255))
        damaged = intact[:at] + bytes([flipped]) + intact[at + 1 :]
    try:
        path.write_bytes(damaged)
        try:
            found = _weights(directory)
            assert name == "config.json" or all(torch.equal(found[k], weights[k]) for k in weights)
        except UserError as error:
            assert "\n" not in str(error)
    finally:
        path.write_bytes(intact)


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    source = HuggingFaceReader(directory)
    return {
        key: source.read(key, MAIN_PARAM, full(tensor.shape))
        for key, tensor in source.tensors.items()
    }


@pytest.fixture(scope="module")
def corruptible(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, torch.Tensor]]:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
    model = models.build("mistral", **small)
    path = models.save(model, tmp_path_factory.mktemp("model"), max_shard_size="2KB")
    return path, _weights(path)


def test_no_heavy_imports() -> None:
    """The converter starts without megatron-core, transformers or CUDA, and so do architectures."""
    code = (
        "import sys, megatron_grow.checkpoint.huggingface.reader, "
        "megatron_grow.checkpoint.huggingface.writer, torch; "
        "from megatron_grow.config.model import ModelConfig; "
        "from megatron_grow.model.architectures import ARCHITECTURES, logical_tensors; "
        "[logical_tensors(ModelConfig(architecture=name, vocab_size=9)) "
        "for name in ARCHITECTURES.builtin]; "
        "assert not torch.cuda.is_initialized(); "
        "print([m for m in ('megatron.core', 'transformers', 'transformer_engine') "
        "if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.strip() == "[]"
