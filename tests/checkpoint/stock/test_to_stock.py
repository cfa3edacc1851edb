"""Checkpoints written here, loaded by megatron-core as stock Megatron-LM does."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.optimizer import ParamKey

from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.save import save
from megatron_grow.checkpoint.torch_dist.names import COMMON, tensor_key
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection, ScheduleSection, TrainSection
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.parallel import process_groups
from megatron_grow.state.boxes import full
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.piece import Piece
from tests.checkpoint.stock.checkpoints import build_optimizer, sharded, state_of
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
    within,
)
from tests.distributed import run_ranks

CASES = {
    "gpt2, fp32": (GPT2, "fp32", layout(), 1, "fp32"),
    "llama, fp32 to TP2": (LLAMA, "fp32", layout(tp=2), 2, "fp32"),
    "qwen3, fp32 to PP2 VPP2": (QWEN3, "fp32", layout(pp=2, vpp=2), 2, "fp32"),
    "gpt2, bf16 to DP2": (GPT2, "bf16", layout(), 2, "distributed"),
    "llama, bf16 to TP2": (LLAMA, "bf16", layout(tp=2), 2, "distributed"),
}
"""Model and precision here; layout, ranks and optimizer there."""


MULTIPLIERS = [
    {"tensors": "*.mlp.linear_fc?.weight", "lr": 0.5},
    {"tensors": "head", "lr": 0.25, "weight_decay": 2.0},
]
OVERRIDES = {
    ParamKey(name="*.mlp.linear_fc?.weight"): {"lr_mult": 0.5, "max_lr": 5e-3, "min_lr": 0.0},
    ParamKey(name="*word_embeddings.weight"): {
        "lr_mult": 0.25,
        "max_lr": 2.5e-3,
        "min_lr": 0.0,
        "wd_mult": 2.0,
    },
}
"""The same in megatron-core's words."""


def run_config(model: ModelConfig, precision: Any, **optimizer: Any) -> RunConfig:
    return RunConfig(
        model=model,
        train=TrainSection(
            train_iters=20,
            global_batch_size=BATCH,
            seq_length=LENGTH,
            precision=precision,
        ),
        optimizer=OptimizerSection(lr=1e-2, adam_beta2=0.999, **optimizer),
        schedule=ScheduleSection(lr_decay_style="cosine", lr_warmup_fraction=0.1),
    )


def write(root: Path, model: ModelConfig, precision: str, **optimizer: Any) -> None:
    """On one rank: a checkpoint of ours whose tensors are all painted."""
    process_groups.set_up(layout(), seed=1)
    tensors = logical_tensors(model)
    pieces = [
        Piece(
            key,
            kind,
            full(tensor.shape),
            painted(tensor_key(key, kind), tensor.checkpoint_shape).view(tensor.shape),
            owned=True,
        )
        for key, tensor in tensors.items()
        for kind in (MAIN_PARAM, "exp_avg", "exp_avg_sq")
    ]
    record = Record(
        step=STEP,
        stage=0,
        consumed_samples=STEP * BATCH,
        consumed_tokens=STEP * BATCH * LENGTH,
        optimizer_step=STEP,
        model=asdict(model),
        precision=precision,
        config=asdict(run_config(model, precision, **optimizer)),
    )
    save(root, record, pieces, tensors)


def write_all(root: Path) -> None:
    for name, (model, precision, *_) in CASES.items():
        write(root / name, model, precision)
    write(root / "muon", GPT2, "fp32", optimizer="muon")
    write(root / "multipliers", GPT2, "fp32", multipliers=MULTIPLIERS)
    write(root / "epsilon", GPT2, "fp32", multipliers=[{"tensors": "matrix", "eps": 2.0}])
    write(root / "padded", PADDED, "bf16")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ours")
    run_ranks(1, write_all, root)
    return root


def load_all(world_size: int, root: Path) -> dict[str, dict[str, Any]]:
    """On a rank: what Megatron-LM's ``load_checkpoint`` does."""
    found = {}
    for name, (model, _, parallel, ranks, kind) in CASES.items():
        if ranks != world_size:
            continue
        directory = str(root / name / f"iter_{STEP:07d}")
        wrapped, optimizer, schedule = build_optimizer(model, parallel, kind)
        template = state_of(wrapped, optimizer, kind, is_loading=True)
        for shard in sharded(template):
            shard.data.detach().fill_(torch.nan)
        state = dist_checkpointing.load(template, directory)
        common = dist_checkpointing.load_common_state_dict(directory)
        for number, chunk in enumerate(wrapped):
            chunk.load_state_dict(state[f"model{number}" if len(wrapped) > 1 else "model"])
        if kind == "fp32":  # the distributed optimizer's own loading needs a fused Adam
            optimizer.load_state_dict(state["optimizer"])
        else:
            groups = state["optimizer"]["optimizer"]["param_groups"]
            assert [group["wd_mult"] for group in groups] == [1.0, 0.0]
            assert {group["step"] for group in groups} == {STEP}
        schedule.load_state_dict(common["opt_param_scheduler"])
        # Of the distributed optimizer, what was loaded; else what is live.
        live = state_of(wrapped, optimizer, kind) if kind == "fp32" else template
        found[name] = {
            "keys": _check_tensors(live, wrapped),
            "args": vars(common["args"]),
            "iteration": common["iteration"],
            "content": dist_checkpointing.load_content_metadata(directory),
            "num_steps": schedule.num_steps,
            "lr": {group["lr"] for group in optimizer.param_groups},
            "decay": [group["weight_decay"] for group in optimizer.param_groups],
            "betas": {tuple(group["betas"]) for group in optimizer.param_groups},
            "steps": {
                float(held["step"])
                for wrapper in optimizer.chained_optimizers
                for held in wrapper.optimizer.state.values()
            },
        }
    return found


def _check_tensors(state: dict[str, Any], wrapped: list) -> set[str]:
    """That weights and moments are the painted ones, weights rounded; their keys."""
    seen = set()
    for shard in (*sharded(state), *sharded([c.module.sharded_state_dict() for c in wrapped])):
        key, dtype = shard.key, shard.data.dtype
        name = key if key.startswith("optimizer.") else tensor_key(key, MAIN_PARAM)
        whole = painted(name, shard.global_shape).to(dtype)
        assert torch.equal(shard.data, whole[within(shard)].view_as(shard.data)), key
        seen.add(key)
    return seen


def load_multipliers(root: Path) -> tuple[list[dict], list[dict], dict[str, dict]]:
    """On a rank: the groups that megatron-core makes of the same overrides, those that we stored,
    and what each parameter is under after these are loaded."""
    directory = str(root / "multipliers" / f"iter_{STEP:07d}")
    wrapped, optimizer, schedule = build_optimizer(GPT2, layout(), "fp32", OVERRIDES)
    own = [dict(group, params=[]) for group in optimizer.param_groups]
    state = dist_checkpointing.load(
        state_of(wrapped, optimizer, "fp32", is_loading=True), directory
    )
    optimizer.load_state_dict(state["optimizer"])
    common = dist_checkpointing.load_common_state_dict(directory)
    schedule.load_state_dict(common["opt_param_scheduler"])
    schedule.step(STEP * BATCH)
    names = {id(param): name for name, param in wrapped[0].module.named_parameters()}
    loaded = {
        names[id(param)]: {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
        for param in group["params"]
    }
    return own, common["optimizer"]["param_groups"], loaded


def load_padded(root: Path) -> int:
    """On a rank of two: loads 100 rows into megatron-core's 128; how many tensors have them."""
    wrapped, optimizer, _ = build_optimizer(PADDED, layout(tp=2), "distributed")
    template = state_of(wrapped, optimizer, "distributed", is_loading=True)
    shards = [s for s in sharded(template) if "embedding" in s.key or "output_layer" in s.key]
    for shard in shards:
        shard.data.detach().fill_(torch.nan)
    dist_checkpointing.load(template, str(root / "padded" / f"iter_{STEP:07d}"))
    for shard in shards:
        name = shard.key
        name = name if name.startswith("optimizer.") else tensor_key(name, MAIN_PARAM)
        whole = torch.zeros(128, 32)
        whole[:100] = painted(name, (100, 32))
        expected = whole.to(shard.data.dtype)[within(shard)]
        assert torch.equal(shard.data, expected.view_as(shard.data)), shard.key
    return len(shards)


def test_megatron_core_pads_the_vocabulary_with_zeros(root: Path) -> None:
    assert run_ranks(2, load_padded, root) == [8, 8]


def _keys(model: ModelConfig, precision: str) -> set[str]:
    keys = set(logical_tensors(model))
    kinds = ("exp_avg", "exp_avg_sq", *((MAIN_PARAM,) if precision == "bf16" else ()))
    return keys | {tensor_key(key, kind) for key in keys for kind in kinds}


@pytest.mark.parametrize("world_size", [1, 2])
def test_megatron_core_goes_on_from_it(world_size: int, root: Path) -> None:
    ranks = run_ranks(world_size, load_all, world_size, root)
    for name, (model, precision, *_, kind) in CASES.items():
        loads = [rank[name] for rank in ranks if name in rank]
        if loads:
            assert set().union(*(loaded["keys"] for loaded in loads)) == _keys(model, precision)
        for loaded in loads:
            assert loaded["iteration"] == STEP
            assert loaded["num_steps"] == STEP * BATCH
            assert list(loaded["lr"]) == [pytest.approx(_cosine(STEP))]
            assert loaded["decay"] == [0.01, 0.0]
            if kind == "fp32":
                assert loaded["steps"] == {STEP}
                assert loaded["betas"] == {(0.9, 0.999)}
            sharding = loaded["content"].get("distrib_optim_sharding_type")
            assert sharding == ("fully_reshardable" if precision == "bf16" else None)
            args = loaded["args"]
            expected = vars(stock_args(model, layout(), bf16=precision == "bf16"))
            for field in ARGUMENTS:
                assert args[field] == expected[field], field
            assert args["no_save_rng"] is True
            assert args["no_save_optim"] is False


def _cosine(step: int) -> float:
    """The rate after two steps of warm-up, of twenty."""
    return 1e-2 * 0.5 * (1 + math.cos(math.pi * (step - 2) / (20 - 2)))


ARGUMENTS = (
    # check_checkpoint_args compares these.
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "add_position_embedding",
    "max_position_embeddings",
    "make_vocab_size_divisible_by",
    # --use-checkpoint-args takes these.
    "ffn_hidden_size",
    "seq_length",
    "num_query_groups",
    "group_query_attention",
    "kv_channels",
    "position_embedding_type",
    "rotary_base",
    "rotary_percent",
    "add_bias_linear",
    "add_qkv_bias",
    "squared_relu",
    "swiglu",
    "untie_embeddings_and_output_weights",
    "normalization",
    "attention_dropout",
    "hidden_dropout",
    "padded_vocab_size",
    # load_checkpoint reads these.
    "consumed_train_samples",
    "bf16",
)


def test_an_optimizer_that_megatron_does_not_have_is_not_offered(root: Path) -> None:
    path = root / "muon" / f"iter_{STEP:07d}" / COMMON
    with torch.serialization.safe_globals([Namespace]):
        common = torch.load(path, weights_only=True)
    assert common["args"].no_save_optim is True
    assert "optimizer" not in common
    assert "opt_param_scheduler" not in common


def test_multipliers_make_megatron_cores_groups(root: Path) -> None:
    """In its order; loaded, each parameter has its own rate, and not another group's."""
    [(own, ours, loaded)] = run_ranks(1, load_multipliers, root)
    names = ("wd_mult", "lr_mult", "max_lr", "min_lr", "is_expert_parallel", "is_decoupled_lr")
    names = (*names, "default_config", "eps", "betas")
    assert [[group[name] for name in names] for group in ours] == [
        [group[name] for name in names] for group in own
    ]
    assert len(ours) == 4
    for name, group in loaded.items():
        rate = {"word_embeddings.weight": 0.25, "fc1.weight": 0.5, "fc2.weight": 0.5}
        times = next((rate[end] for end in rate if name.endswith(end)), 1.0)
        assert group["max_lr"] == 1e-2 * times and group["step"] == STEP, name
        decayed = name.endswith(".weight") and "norm" not in name
        decays = (2.0 if "word_embeddings" in name else 1.0) if decayed else 0.0
        assert group["wd_mult"] == decays, name


def test_groups_that_megatron_core_would_mix_up_are_not_offered(root: Path) -> None:
    """It tells groups apart by multipliers of rate and weight decay, not of epsilon."""
    path = root / "epsilon" / f"iter_{STEP:07d}" / COMMON
    with torch.serialization.safe_globals([Namespace]):
        common = torch.load(path, weights_only=True)
    assert common["args"].no_save_optim is True and "optimizer" not in common


def test_the_common_state_is_plain(root: Path) -> None:
    """Nothing in it needs more than ``argparse.Namespace`` to be unpickled."""
    for name in CASES:
        with torch.serialization.safe_globals([Namespace]):
            torch.load(root / name / f"iter_{STEP:07d}" / COMMON, weights_only=True)
