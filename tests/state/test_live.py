"""Pieces of live models: on every layout they tile every tensor, and hold the same values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from megatron_grow.config.run import RunConfig
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.boxes import full
from megatron_grow.state.fresh import fresh
from tests.distributed import run_ranks
from tests.state.snapshot import Part, State, assemble, snapshot
from tests.toy import TIED, begin, layout, still_run

UNTIED = replace(
    TIED,
    share_embeddings_and_output_weights=False,
    activation="swiglu",
    normalization="RMSNorm",
    qk_layernorm=True,
)
REPLICATED = {"use_distributed_optimizer": False}


def by_hand(pp: int, stages: str, tp: int = 1) -> dict[str, Any]:
    return layout(tp=tp, pp=pp, pipeline_model_parallel_layout=stages)


CASES = {
    2: {
        "DP2": still_run(layout()),
        "DP2 replicated": still_run(layout(**REPLICATED)),
        "DP2 bf16": still_run(layout(), precision="bf16"),
        "DP2 bf16 replicated": still_run(layout(**REPLICATED), precision="bf16"),
        "DP2 muon": still_run(layout(), optimizer="muon"),
        "DP2 sgd": still_run(layout(), optimizer="sgd"),
        "TP2": still_run(layout(tp=2)),
        "TP2 gated, untied": still_run(layout(tp=2), UNTIED),
        "PP2 tied": still_run(layout(pp=2)),
        "PP2 untied": still_run(layout(pp=2), UNTIED),
        "PP2 muon": still_run(layout(pp=2), optimizer="muon"),
        "PP2 VPP2 tied": still_run(by_hand(2, "E|t|t|L")),
        "PP2 VPP2 untied bf16": still_run(by_hand(2, "Et|||tL"), UNTIED, precision="bf16"),
    },
    4: {
        "TP2 PP2": still_run(layout(tp=2, pp=2)),
        "TP2 DP2": still_run(layout(tp=2, sequence_parallel=True), UNTIED),
        "PP2 DP2": still_run(layout(pp=2)),
        "PP2 DP2 replicated": still_run(layout(pp=2, **REPLICATED)),
        "TP2 PP2 bf16": still_run(layout(tp=2, pp=2), UNTIED, precision="bf16"),
        "TP2 PP2 VPP2": still_run(by_hand(2, "E|t|t|L", tp=2), UNTIED),
        "PP2 VPP2 DP2": still_run(by_hand(2, "Et|t||L")),
        "PP4 with idle ranks, muon": still_run(by_hand(4, "Et|||tL"), optimizer="muon"),
    },
}


def first_states(world_size: int) -> dict[str, list[Part]]:
    """On a rank: what it holds at the start of each case."""
    states = {}
    for name, config in CASES[world_size].items():
        live = begin(config, world_size)
        states[name] = snapshot(live.pieces())
        live.release()
    return states


@pytest.fixture(scope="module")
def states() -> dict[str, list[list[Part]]]:
    by_rank = {world_size: run_ranks(world_size, first_states, world_size) for world_size in CASES}
    return {name: [rank[name] for rank in ranks] for ranks in by_rank.values() for name in ranks[0]}


@pytest.mark.parametrize(
    ("name", "config"), [case for cases in CASES.values() for case in cases.items()]
)
def test_pieces_tile_every_tensor_of_every_kind(
    name: str, config: RunConfig, states: dict[str, list[list[Part]]]
) -> None:
    tensors = logical_tensors(config.model)
    state: State = assemble(tensors, states[name])
    for key, tensor in tensors.items():
        kinds = {kind for of, kind in state if of == key}
        assert kinds - {"main_param"} == moments(key, config.optimizer.optimizer)
        initial = fresh(tensor, full(tensor.shape), tensor.init, config.run.seed)
        assert np.array_equal(state[key, "main_param"], initial)
        assert not any(state[key, kind].any() for kind in kinds - {"main_param"})


def moments(key: str, optimizer: str) -> set[str]:
    is_layer_matrix = ".layers." in key and key.endswith("weight") and "norm" not in key
    if optimizer == "sgd" or (optimizer == "muon" and is_layer_matrix):
        return {"momentum_buffer"}
    return {"exp_avg", "exp_avg_sq"}


def test_the_distributed_optimizer_shards_and_the_other_replicates(
    states: dict[str, list[list[Part]]],
) -> None:
    def sizes(name: str) -> list[int]:
        return [sum(part.values.size for part in rank) for rank in states[name]]

    whole = 3 * sum(np.prod(tensor.shape) for tensor in logical_tensors(TIED).values())
    assert sizes("DP2 replicated") == [whole, whole]
    assert sum(sizes("DP2")) == whole
    assert max(sizes("DP2")) < 0.6 * whole
    # Replicas divide the writing of a checkpoint among them.
    for rank in states["DP2 replicated"]:
        assert 0.2 * whole < sum(part.values.size for part in rank if part.owned) < 0.8 * whole
