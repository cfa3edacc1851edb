"""Checkpoints of stock Megatron-LM, as megatron-core writes them, read here."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.torch_dist.names import COMMON
from megatron_grow.checkpoint.torch_dist.reader import TorchDistReader
from megatron_grow.checkpoint.torch_dist.record import record_of
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import full
from megatron_grow.state.kinds import MAIN_PARAM
from tests.checkpoint.hostile import bombs
from tests.checkpoint.stock.checkpoints import save
from tests.checkpoint.stock.models import (
    BATCH,
    GPT2,
    LENGTH,
    LLAMA,
    PADDED,
    QWEN3,
    STEP,
    layout,
    painted,
    stock_args,
)
from tests.distributed import run_ranks

CASES: dict[str, tuple[ModelConfig, ParallelConfig, int, str, str]] = {
    "gpt2": (GPT2, layout(), 1, "fp32", ""),
    "llama, TP2": (LLAMA, layout(tp=2), 2, "fp32", ""),
    "qwen3, PP2 VPP2": (QWEN3, layout(pp=2, vpp=2), 2, "bf16", "optimizer.state.fp32_param."),
    "gpt2, TP2 bf16": (GPT2, layout(tp=2), 2, "bf16", "optimizer.state.fp32_param."),
    "llama, DP2": (LLAMA, layout(), 2, "distributed", "optimizer.state.param."),
}
"""Model, layout, ranks, optimizer, and how names of main parameters begin."""


def save_all(world_size: int, root: Path) -> None:
    for name, (model, parallel, ranks, optimizer, _) in CASES.items():
        if ranks == world_size:
            save(model, parallel, optimizer, root / name)
    if world_size == 2:
        save(GPT2, layout(), "dp_reshardable", root / "dp_reshardable")
        save(PADDED, layout(tp=2), "bf16", root / "padded", vocab_size=100)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stock")
    for world_size in (1, 2):
        run_ranks(world_size, save_all, world_size, root)
    return root


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_what_megatron_core_saved(name: str, root: Path) -> None:
    model, _, _, optimizer, begins = CASES[name]
    source = TorchDistReader(root / name)
    assert source.record.model_config.resolved == model.resolved
    assert source.record.precision == ("fp32" if optimizer == "fp32" else "bf16")
    for key, tensor in source.tensors.items():
        assert source.kinds(key) == (MAIN_PARAM, "exp_avg", "exp_avg_sq")
        for kind in source.kinds(key):
            stored = f"{begins}{key}" if kind == MAIN_PARAM else f"optimizer.state.{kind}.{key}"
            expected = painted(stored, tensor.checkpoint_shape).view(tensor.shape)
            assert source.dtype(key, kind) == torch.float32
            assert torch.equal(source.read(key, kind, full(tensor.shape)), expected), stored


@pytest.mark.parametrize("name", CASES)
def test_progress_and_recipe(name: str, root: Path) -> None:
    record = record_of(root / name)
    assert (record.step, record.optimizer_step, record.stage) == (STEP, STEP, 0)
    assert record.consumed_samples == STEP * BATCH
    assert record.consumed_tokens == STEP * BATCH * LENGTH
    assert record.config["train"]["seq_length"] == LENGTH
    assert record.config["train"]["global_batch_size"] == BATCH
    assert record.config["optimizer"]["lr"] == 1e-2
    assert record.config["schedule"]["lr_decay_style"] == "cosine"
    assert record.config["schedule"]["lr_warmup_fraction"] == 2 / 20
    assert record.config["megatron_args"]["tokenizer_type"] == "GPT2BPETokenizer"
    assert Record(**{**vars(record)}).to_json()


def test_rows_that_pad_the_vocabulary_are_left_out(root: Path) -> None:
    """Stock stores all 128 rows of two ranks; its tokens are 100."""
    source = TorchDistReader(root / "padded")
    assert source.record.model_config.vocab_size == 100
    for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
        for kind in source.kinds(key):
            begins = (
                "optimizer.state.fp32_param" if kind == MAIN_PARAM else f"optimizer.state.{kind}"
            )
            expected = painted(f"{begins}.{key}", (128, 32))[:100]
            assert torch.equal(source.read(key, kind, ((0, 100), (0, 32))), expected), kind


def test_an_optimizer_stored_by_rank_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"dp_reshardable.*--dist-ckpt-optim-fully-reshardable"):
        record_of(root / "dp_reshardable")


def common(tmp_path: Path, args: Any, **more: Any) -> Path:
    """A directory with nothing but a common state."""
    torch.save({"args": args, "iteration": STEP, **more}, tmp_path / COMMON)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_experts", 8),
        ("multi_latent_attention", True),
        ("window_size", (128, 0)),
        ("mtp_num_layers", 1),
        ("is_hybrid_model", True),
        ("hybrid_override_pattern", "M*M*"),
        ("layernorm_zero_centered_gamma", True),
        ("apply_layernorm_1p", True),
        ("apply_residual_connection_post_layernorm", True),
        ("quick_geglu", True),
        ("openai_gelu", True),
        ("softmax_type", "learnable"),
        ("position_embedding_type", "mrope"),
        ("position_embedding_type", "none"),
        ("normalization", "DyT"),
        ("no_rope_freq", [0, 1]),
        ("rotary_interleaved", True),
        ("experimental_attention_variant", "gated_delta_net"),
        ("heterogeneous_layers_config_path", "/some/where.json"),
        ("spec", ["my", "spec"]),
        ("use_legacy_models", True),
        ("fp16", True),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(name: str, value: Any, tmp_path: Path) -> None:
    args = stock_args(LLAMA, layout(), **{name: value})
    with pytest.raises(UserError, match=f"{name}=") as caught:
        record_of(common(tmp_path, args))
    assert COMMON in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("vocab_size", "tokenizer", "padded", "tokens"),
    [
        (50257, "GPT2BPETokenizer", 50304, 50257),
        (50257, "GPT2BPETokenizer", 50432, 50257),
        (None, "HuggingFaceTokenizer", 50304, 50304),  # padding is not told from tokens
        (50256, "NullTokenizer", 50304, 50257),  # which adds an end of document
        (50304, "NullTokenizer", 50304, 50304),
    ],
)
def test_how_many_tokens_megatron_knows(
    vocab_size: int | None, tokenizer: str, padded: int, tokens: int, tmp_path: Path
) -> None:
    more = {"vocab_size": vocab_size, "padded_vocab_size": padded, "tokenizer_type": tokenizer}
    args = stock_args(GPT2, layout(), **more)
    assert record_of(common(tmp_path, args)).model_config.vocab_size == tokens


@pytest.mark.parametrize("kind", bombs(Path()))
def test_hostile_common_states_are_refused(kind: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    args = stock_args(GPT2, layout(), exit_signal=bombs(marker)[kind])
    with pytest.raises(UserError, match=f"{kind}, which is not allowed"):
        record_of(common(tmp_path, args))
    assert not marker.exists()


@pytest.mark.parametrize("args", [None, [], Namespace(), {"num_layers": 2}])
def test_common_states_that_say_nothing(args: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(str(tmp_path / COMMON))) as caught:
        record_of(common(tmp_path, args))
    assert "\n" not in str(caught.value)
