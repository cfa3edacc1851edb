"""What is saved under one layout comes back under any other, to the bit; megatron-core reads it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core import dist_checkpointing

from megatron_grow.checkpoint.torch_dist.chunk_reader import ChunkReader
from megatron_grow.checkpoint.torch_dist.reader import TorchDistReader
from megatron_grow.config.grow import GrowSection
from megatron_grow.config.stages import StageSection
from megatron_grow.growth import at_load
from megatron_grow.growth.plan import growth
from megatron_grow.live.stage import LiveStage, filled
from megatron_grow.model.architectures import architecture_of, logical_tensors
from megatron_grow.optim.state import inner_optimizers
from megatron_grow.parallel import process_groups
from megatron_grow.state.boxes import slices
from megatron_grow.state.tensors import LogicalTensor
from tests.checkpoint.live import resume, write
from tests.distributed import run_ranks
from tests.growth.test_chains import paint
from tests.state.snapshot import Part, State, assemble, model_weights, snapshot
from tests.toy import MODEL, TIED, begin, grow, layout, run_config, still_run

GATED = replace(
    TIED,
    share_embeddings_and_output_weights=False,
    activation="swiglu",
    normalization="RMSNorm",
    position_embedding_type="rope",
    qk_layernorm=True,
)
ODD = replace(TIED, vocab_size=100, make_vocab_size_divisible_by=48)
"""Padded to 144 rows on one rank and to 192 on two, of which the second has 4 of its own."""
DP, TP2, PP2 = layout(), layout(tp=2), layout(pp=2)
REPLICATED = layout(use_distributed_optimizer=False)
TP2_PP2 = layout(tp=2, pp=2, sequence_parallel=True)
VPP2 = layout(pp=2, virtual_pipeline_model_parallel_size=2)
UNEVEN = layout(pp=2, num_layers_in_last_pipeline_stage=3)
STEP, UPDATES = 12, 7


# Ranks and layout of the save; those of the load; what differs from TIED, Adam and fp32.
CASES: dict[str, tuple[tuple[int, dict], tuple[int, dict], dict[str, Any]]] = {
    "one rank": ((1, DP), (1, DP), {}),
    "DP2 to one rank": ((2, DP), (1, DP), {}),
    "TP2 to PP2": ((2, TP2), (2, PP2), {}),
    "PP2 to replicas": ((2, PP2), (2, REPLICATED), {}),
    "DP2 to TP2": ((2, DP), (2, TP2), {}),
    "gated, TP2 to PP2": ((2, TP2), (2, PP2), {"model": GATED}),
    "bf16, DP2 to TP2": ((2, DP), (2, TP2), {"precision": "bf16"}),
    "muon, PP2 to TP2": ((2, PP2), (2, TP2), {"optimizer": "muon"}),
    "sgd, replicas to DP2": ((2, REPLICATED), (2, DP), {"optimizer": "sgd"}),
    "TP2 PP2 to DP2": ((4, TP2_PP2), (2, DP), {}),
    "one rank to TP2 PP2": ((1, DP), (4, TP2_PP2), {"model": GATED}),
    "PP2 VPP2 to one rank": ((2, VPP2), (1, DP), {"model": MODEL}),
    "one rank to PP2 VPP2": ((1, DP), (2, VPP2), {"model": MODEL}),
    "PP2 VPP2 to TP2": ((2, VPP2), (2, TP2), {"model": MODEL}),
    "uneven PP2 to TP2 PP2 VPP2": ((2, UNEVEN), (4, VPP2 | TP2_PP2), {"model": MODEL}),
    "bf16, PP2 VPP2 DP2 to uneven PP2": (
        (4, VPP2),
        (2, UNEVEN),
        {"model": MODEL, "precision": "bf16"},
    ),
    "odd, one rank to TP2": ((1, DP), (2, TP2), {"model": ODD}),
    "odd bf16, TP2 to DP2": ((2, TP2), (2, DP), {"model": ODD, "precision": "bf16"}),
    "odd muon, TP2 PP2 to one rank": ((4, TP2_PP2), (1, DP), {"model": ODD, "optimizer": "muon"}),
}

Side = dict[str, tuple[list[Part], list[Part]]]
"""A rank's state and what its model computes with, by case."""


def held_by(live: LiveStage) -> tuple[list[Part], list[Part]]:
    return snapshot(live.pieces()), model_weights([chunk.module for chunk in live.chunks])


def saves(world_size: int, root: Path) -> Side:
    """On a rank: what it held when it saved, for the cases of this many ranks."""
    held = {}
    for name, ((size, parallel), _, more) in CASES.items():
        if size == world_size:
            config = still_run(parallel, **more)
            live = begin(config, world_size)
            paint(live)
            live.write_back()
            live.count_from(UPDATES)
            write(live, config, root / name, STEP)
            held[name] = held_by(live)
            live.release()
    return held


def loads(world_size: int, root: Path) -> Side:
    """On a rank: what it holds after it has loaded."""
    held = {}
    for name, (_, (size, parallel), more) in CASES.items():
        if size == world_size:
            live = resume(root / name / f"iter_{STEP:07d}", still_run(parallel, **more), world_size)
            held[name] = held_by(live)
            states = [
                state
                for inner in inner_optimizers(live.optimizer)
                for state in inner.state.values()
            ]
            assert {float(state["step"]) for state in states if "step" in state} <= {UPDATES}
            live.release()
    return held


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def sides(root: Path) -> tuple[dict[str, list], dict[str, list]]:
    """What the ranks of each case held when they saved, and after they loaded."""
    return tuple(  # type: ignore[return-value]
        {
            name: [rank[name] for rank in ranks]
            for size in (1, 2, 4)
            for ranks in [run_ranks(size, function, size, root)]
            for name in ranks[0]
        }
        for function in (saves, loads)
    )


def tensors_of(name: str) -> dict[str, LogicalTensor]:
    return logical_tensors(CASES[name][2].get("model", TIED))


def whole(name: str, ranks: list[tuple[list[Part], list[Part]]]) -> State:
    return assemble(tensors_of(name), [state for state, _ in ranks])


@pytest.mark.parametrize("name", CASES)
def test_save_and_load(name: str, sides: tuple[dict[str, list], dict[str, list]]) -> None:
    saved, loaded = (whole(name, side[name]) for side in sides)
    assert saved.keys() == loaded.keys()
    for which, values in saved.items():
        assert np.array_equal(values, loaded[which]), which
        assert values.std() > 0.1  # painted, not fresh
    for _, weights in sides[1][name]:
        check_weights(name, weights, saved)


def check_weights(name: str, weights: list[Part], saved: State) -> None:
    """A model computes with what was saved, rounded to its precision, and zeros for padding."""
    tensors = tensors_of(name)
    dtype = torch.bfloat16 if "bf16" in name else torch.float32
    for part in weights:
        stored = saved[part.key, "main_param"].reshape(tensors[part.key].checkpoint_shape)
        expected = torch.from_numpy(stored[slices(part.box)]).to(dtype)
        assert part.kind == str(dtype)
        values, padding = part.values[: len(expected)], part.values[len(expected) :]
        assert torch.equal(torch.from_numpy(values), expected.float()), part.key
        assert not padding.any() and (not len(padding) or "vocab" in tensors[part.key].axes[0].name)


def test_what_is_stored_is_megatrons(root: Path, sides: object) -> None:
    """Names, shapes and precision; weights are stored once where the model's are exact."""
    fp32 = ChunkReader(root / "TP2 to PP2" / f"iter_{STEP:07d}")
    bf16 = ChunkReader(root / "bf16, DP2 to TP2" / f"iter_{STEP:07d}")
    for key, tensor in logical_tensors(TIED).items():
        for kind in ("exp_avg", "exp_avg_sq"):
            assert fp32.shape(f"optimizer.state.{kind}.{key}") == tensor.checkpoint_shape
        assert fp32.shape(key) == tensor.checkpoint_shape
        assert f"optimizer.state.param.{key}" not in fp32
        box = tuple((0, size) for size in tensor.checkpoint_shape)
        exact = bf16.read(f"optimizer.state.param.{key}", box)
        assert torch.equal(bf16.read(key, box), exact.bfloat16().float())
        assert not torch.equal(bf16.read(key, box), exact)
    names = {p.name for p in (root / "TP2 to PP2" / f"iter_{STEP:07d}").iterdir()}
    assert {".metadata", "common.pt", "metadata.json"} <= names


MEGATRON = {
    1: (DP, ["TP2 to PP2", "odd bf16, TP2 to DP2"]),
    2: (TP2, ["DP2 to TP2", "gated, TP2 to PP2", "odd, one rank to TP2"]),
}


def megatron_loads(world_size: int, root: Path) -> dict[str, tuple[dict, list[Part]]]:
    """On a rank: what megatron-core's own loader makes of a checkpoint."""
    found = {}
    parallel, names = MEGATRON[world_size]
    for name in names:
        config = still_run(parallel, **CASES[name][2])
        stage = config.resolve(world_size)[0]
        process_groups.set_up(stage.parallel, seed=1)
        [gpt] = architecture_of(stage.model).build(stage.model, stage.parallel, config.train)
        directory = str(root / name / f"iter_{STEP:07d}")
        state = dist_checkpointing.load(gpt.sharded_state_dict(), directory)
        gpt.load_state_dict(state, strict=False)
        common = dist_checkpointing.load_common_state_dict(directory)
        found[name] = (common, model_weights([gpt]))
    return found


@pytest.mark.parametrize("world_size", MEGATRON)
def test_megatron_core_loads_it(
    world_size: int, root: Path, sides: tuple[dict[str, list], dict[str, list]]
) -> None:
    ranks = run_ranks(world_size, megatron_loads, world_size, root)
    for name in MEGATRON[world_size][1]:
        saved = whole(name, sides[0][name])
        for rank in ranks:
            common, weights = rank[name]
            assert common["iteration"] == STEP
            assert common["args"].consumed_train_samples == STEP * 8
            check_weights(name, weights, saved)
        assert {part.key for rank in ranks for part in rank[name][1]} == set(tensors_of(name))


# A growth while loading is the growth in memory.

GROWTHS = {
    "random": ("random", "carry", DP, TP2),
    "copying_stack, carry_old": ("copying_stack", "carry_old", TP2, PP2),
    "copying_zero": ("copying_zero", "carry", PP2, DP),
    "zero, reset": ("zero", "reset", DP, PP2),
}


def two_ways(root: Path) -> dict[str, tuple[list[Part], list[Part]]]:
    """On a rank: its state after a growth in memory, and after the same growth at load."""
    found = {}
    for name, (depth, policy, before, after) in GROWTHS.items():
        config = run_config(
            StageSection(until=1, model={"num_layers": 2}, parallel=before),
            StageSection(parallel=after, grow=GrowSection(depth=depth, optimizer_state=policy)),
        )
        live = begin(config, 2)
        paint(live)
        path = write(live, config, root / name, 1)
        live = grow(live, config, 2)
        in_memory = snapshot(live.pieces())
        live.release()
        source, stage = config.resolve(2)
        plan = growth(source.model, stage.model, stage.grow, target_depth=4, seed=1234)
        read = partial(at_load.load, plan, TorchDistReader(path))
        live = filled(stage, config, plan.tensors, read, 0)
        found[name] = (in_memory, snapshot(live.pieces()))
        live.release()
    return found


def test_growth_at_load_equals_growth_in_memory(tmp_path: Path) -> None:
    for rank in run_ranks(2, two_ways, tmp_path):
        for in_memory, at_load_ in rank.values():
            assert len(in_memory) == len(at_load_) > 0
            for a, b in zip(in_memory, at_load_, strict=True):
                assert (a.key, a.kind, a.box) == (b.key, b.kind, b.box)
                assert np.array_equal(a.values, b.values), (a.key, a.kind)
