"""Legacy checkpoints that are damaged, hostile, or of models that cannot be built here."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.optimizer import OptimizerConfig

from megatron_grow.checkpoint.legacy.reader import LegacyReader
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import full
from megatron_grow.state.kinds import MAIN_PARAM
from tests.checkpoint.hostile import bombs
from tests.checkpoint.legacy.files import save
from tests.checkpoint.stock.models import GPT2, layout
from tests.distributed import run_ranks

FIRST = "mp_rank_00/model_optim_rng.pt"


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stock")
    run_ranks(2, save, GPT2, layout(tp=2), root / "iter_0000007")
    return root / "iter_0000007"


@pytest.fixture
def checkpoint(stock: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stock, tmp_path / stock.name))


def change(checkpoint: Path, action: Callable[[dict[str, Any]], Any]) -> None:
    """Change what every file of a checkpoint holds."""
    for path in checkpoint.glob("mp_rank_*/*.pt"):
        state = torch.load(path, weights_only=False)
        action(state)
        torch.save(state, path)


def refused(checkpoint: Path, *said: str) -> None:
    """That a checkpoint is refused, in one line that says ``said``."""
    with pytest.raises(UserError) as caught:
        source = LegacyReader(checkpoint)
        for key, tensor in source.tensors.items():
            source.read(key, MAIN_PARAM, full(tensor.shape))
    assert "\n" not in str(caught.value)
    for part in said:
        assert re.search(part, str(caught.value)), (part, str(caught.value))


@pytest.mark.parametrize("kind", bombs(Path()))
@pytest.mark.parametrize("place", ["args", "model", "optimizer"])
def test_hostile_pickles_are_refused(
    kind: str, place: str, checkpoint: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    bomb = bombs(marker)[kind]

    def plant(state: dict[str, Any]) -> None:
        if place == "args":
            state["args"].exit_signal = bomb
        else:
            state.setdefault(place, {})["bomb"] = bomb

    for path in checkpoint.glob("mp_rank_*/*.pt"):
        state = torch.load(path, weights_only=False)
        plant(state)
        torch.save(state, path)
    refused(checkpoint, FIRST, kind, "not allowed")
    assert not marker.exists()


def test_what_megatron_stores_beside_the_weights_does_no_harm(checkpoint: Path) -> None:
    def add(state: dict[str, Any]) -> None:
        state["args"].config = OptimizerConfig(optimizer="adam")
        state["rng_state"] = [{"np": __import__("numpy").random.get_state()}]

    change(checkpoint, add)
    assert LegacyReader(checkpoint).left_behind == ()


def test_an_optimizer_is_said_to_be_left_behind(checkpoint: Path) -> None:
    change(checkpoint, lambda state: state.update(optimizer={"state": {0: torch.ones(3)}}))
    (checkpoint / "mp_rank_01" / "distrib_optim.pt").touch()
    assert LegacyReader(checkpoint).left_behind == (
        "mp_rank_00/model_optim_rng.pt",
        "mp_rank_01/model_optim_rng.pt",
        "mp_rank_01/distrib_optim.pt",
    )


def test_a_flipped_byte_anywhere_in_the_values(checkpoint: Path) -> None:
    path = checkpoint / FIRST
    state = torch.load(path, weights_only=False)["model"]
    content = bytearray(path.read_bytes())
    for name in ("embedding.word_embeddings.weight", "decoder.layers.2.mlp.linear_fc2.weight"):
        place = content.index(state[name].numpy().tobytes()) + 1001
        content[place] ^= 4
        path.write_bytes(content)
        refused(checkpoint, FIRST, "checksum of data/.* is wrong")
        content[place] ^= 4


def test_a_truncated_file(checkpoint: Path) -> None:
    path = checkpoint / FIRST
    content = path.read_bytes()
    for length in (0, 10, 5000, len(content) - 1, len(content) - 200):
        path.write_bytes(content[:length])
        refused(checkpoint, FIRST, "cannot be read")


def test_ranks_that_are_not_there(checkpoint: Path) -> None:
    (checkpoint / "mp_rank_01").rename(checkpoint / "mp_rank_02")
    refused(checkpoint, "has no mp_rank_01", "TP2 PP1")
    (checkpoint / "mp_rank_02").rename(checkpoint / "mp_rank_01")
    shutil.copytree(checkpoint / "mp_rank_01", checkpoint / "mp_rank_00_000_001")
    refused(checkpoint, "unexpected mp_rank_00_000_001")
    shutil.rmtree(checkpoint / "mp_rank_00")
    refused(checkpoint, "neither")


EMBEDDING = "embedding.word_embeddings.weight"
POSITIONS = "embedding.position_embeddings.weight"


@pytest.mark.parametrize("step", ["release", None])
def test_weights_without_a_place_in_a_run(checkpoint: Path, step: str | None) -> None:
    """Their step is not known, and so the tokens are not either, whatever the arguments say."""

    def release(state: dict[str, Any]) -> None:
        assert state["args"].consumed_train_samples > 0
        state["iteration"] = step
        if step is None:
            del state["iteration"]

    assert LegacyReader(checkpoint).record.consumed_tokens > 0
    change(checkpoint, release)
    record = LegacyReader(checkpoint).record
    assert (record.step, record.consumed_samples, record.consumed_tokens) == (0, 0, 0)


@pytest.mark.parametrize("step", ["latest", "7", -1, 7.5, [7]])
def test_a_step_that_is_none(checkpoint: Path, step: Any) -> None:
    change(checkpoint, lambda state: state.update(iteration=step))
    refused(checkpoint, re.escape(f"iteration={step!r} must be a step, from 0 on, or 'release'"))


def replace_weight(state: dict[str, Any], name: str, dtype: torch.dtype) -> None:
    state["model"][name] = state["model"][name].to(dtype)


STATES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "experts": (
        lambda s: s["model"].update(
            {"decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight": torch.ones(2)}
        ),
        "experts",
    ),
    "an unknown tensor": (lambda s: s["model"].update(extra=torch.ones(2)), "holds extra"),
    "a missing tensor": (
        lambda s: s["model"].pop("decoder.layers.1.mlp.linear_fc1.bias"),
        r"no tensor decoder\.layers\.1\.mlp\.linear_fc1\.bias",
    ),
    "another shape": (
        lambda s: setattr(s["args"], "ffn_hidden_size", 96),
        r"linear_fc1\.weight has shape \(32, 32\), its arguments say \(48, 32\)",
    ),
    "another layout": (
        lambda s: setattr(s["args"], "tensor_model_parallel_size", 4),
        "has no mp_rank_0",
    ),
    "mixed types": (
        lambda s: s["args"].rank and replace_weight(s, EMBEDDING, torch.bfloat16),
        "is torch.bfloat16, another part of it is torch.float32",
    ),
    "a transposed tensor": (
        lambda s: s["model"].update({POSITIONS: torch.ones(32, 16).t()}),
        "row-major",
    ),
    "an old version": (lambda s: s.update(checkpoint_version=2.0), "checkpoint_version=2.0"),
    "no arguments": (lambda s: s.pop("args"), "no args"),
    "arguments of another kind": (lambda s: s.update(args=[1]), "no args"),
    "arguments that are no numbers": (
        lambda s: setattr(s["args"], "hidden_size", "wide"),
        "hidden_size=wide",
    ),
    "an architecture of one's own": (
        lambda s: setattr(s["args"], "architecture", "os:system"),
        "architecture=os:system, which is not imported; gpt, bert are known",
    ),
    "virtual stages that are not there": (
        lambda s: s.update(model0=s.pop("model")),
        "has no model",
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_what_does_not_fit_together(name: str, checkpoint: Path) -> None:
    action, said = STATES[name]
    for rank, path in enumerate(sorted(checkpoint.glob("mp_rank_*/*.pt"))):
        state = torch.load(path, weights_only=False)
        state["args"].rank = rank
        action(state)
        torch.save(state, path)
    refused(checkpoint, said)
