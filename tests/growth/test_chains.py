"""Sources of any depth, several growths in a run, and what moves between ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.live.stage import LiveStage
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.boxes import full, slices
from megatron_grow.state.fresh import fresh
from megatron_grow.state.tensors import Normal
from tests.distributed import run_ranks
from tests.state.snapshot import Part, assemble, snapshot
from tests.toy import MODEL, Trace, begin, grow, layout, run_config, train

DP, TP2, PP2 = layout(), layout(tp=2), layout(pp=2)
REPLICATED = layout(use_distributed_optimizer=False)
TP2_PP2 = layout(tp=2, pp=2, sequence_parallel=True)


def chain(depths: list[int], layouts: list[dict[str, Any]], depth: str = "random") -> RunConfig:
    """Three steps at each depth."""
    last = len(depths) - 1
    stages = [
        StageSection(
            until=3 * (i + 1) if i < last else None,
            model={"num_layers": layers} if i < last else {},
            parallel=parallel,
            grow=GrowSection(depth=depth) if i else None,
        )
        for i, (layers, parallel) in enumerate(zip(depths, layouts, strict=True))
    ]
    return run_config(
        *stages,
        model=replace(MODEL, num_layers=depths[-1]),
        train_iters=3 * len(depths),
        global_batch_size=4,
    )


# Losses.

CHAINS = {
    "zero to four": ([0, 4], "random"),
    "zero to five": ([0, 5], "random"),
    "one to four": ([1, 4], "copying_stack"),
    "one to five": ([1, 5], "copying_zero"),
    "three to seven": ([3, 7], "copying_inter"),
    "two to four to eight": ([2, 4, 8], "copying_stack"),
}
LAYOUTS: dict[int, dict[str, list[dict[str, Any]]]] = {
    1: {name: [DP] * len(depths) for name, (depths, _) in CHAINS.items()},
    2: {
        "zero to four": [DP, PP2],
        "zero to five": [DP, TP2],
        "one to four": [TP2, PP2],
        "one to five": [DP, TP2],
        "three to seven": [TP2, DP],
        "two to four to eight": [DP, TP2, PP2],
    },
    4: {"zero to four": [DP, TP2_PP2], "two to four to eight": [DP, PP2, TP2_PP2]},
}


Losses = dict[int, list[dict[str, list[float]]]]
"""By number of ranks, rank and chain."""


def losses(world_size: int) -> dict[str, list[float]]:
    """On a rank: the losses of each chain."""
    return {
        name: train(chain(CHAINS[name][0], layouts, CHAINS[name][1]), world_size).losses
        for name, layouts in LAYOUTS[world_size].items()
    }


@pytest.fixture(scope="module")
def found() -> Losses:
    return {size: run_ranks(size, losses, size) for size in LAYOUTS}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_learns_through_its_growths(name: str, found: Losses) -> None:
    curve = found[1][0][name]
    depths, _ = CHAINS[name]
    assert len(curve) == 3 * len(depths)
    # Better than when it began, which was as good as a guess.
    assert curve[0] == pytest.approx(np.log(MODEL.vocab_size), rel=0.02)
    assert curve[-1] < curve[0] - 0.1


@pytest.mark.parametrize(
    ("world_size", "name"), [(size, name) for size in (2, 4) for name in LAYOUTS[size]]
)
def test_losses_do_not_depend_on_the_layout(world_size: int, name: str, found: Losses) -> None:
    for rank in found[world_size]:
        assert rank[name] == pytest.approx(found[1][0][name], rel=1e-5)


# State that is painted instead of trained, so that every value tells where it comes from.


def paint(live: LiveStage) -> None:
    """Give every kind of state its own values, the same on every layout."""
    for piece in live.pieces():
        tensor = live.tensors[piece.key]
        named = replace(tensor, key=f"{piece.key} {piece.kind}")
        piece.data.copy_(fresh(named, piece.box, Normal(1.0), seed=0))


Exchange = tuple[list[Part], list[Part], int]
"""What a rank held, what it holds, and the bytes that it received for it."""


def exchange(config: RunConfig, world_size: int) -> Exchange:
    live = begin(config, world_size)
    paint(live)
    source, trace = snapshot(live.pieces()), Trace()
    live = grow(live, config, world_size, trace)
    target = snapshot(live.pieces())
    live.release()
    return source, target, trace.received[0]


WIDE = replace(
    MODEL,
    hidden_size=256,
    ffn_hidden_size=1024,
    vocab_size=2048,
    position_embedding_type="rope",
)


def growth_of(
    depth: str,
    before: dict[str, Any],
    after: dict[str, Any],
    state: str = "carry",
    model: Any = MODEL,
) -> RunConfig:
    return run_config(
        StageSection(until=1, model={"num_layers": 2}, parallel=before),
        StageSection(parallel=after, grow=GrowSection(depth=depth, optimizer_state=state)),
        model=model,
    )


# Elements of MODEL by what tensor parallelism does with them; MODEL has heads of 8 entries, two
# groups of two queries, and so 64 rows of Q, K and V.
LAYER_CUT = 64 * 32 + 64 + 32 * 32 + 64 * 32 + 64 + 32 * 64  # qkv, proj, fc1, fc2; two biases
LAYER_WHOLE = 2 * 2 * 32 + 2 * 32  # two norms; biases of proj and fc2
LAYER = LAYER_CUT + LAYER_WHOLE
EMBEDDING = 128 * 32
POSITIONS, FINAL_NORM = 16 * 32, 2 * 32
STATE, WEIGHTS = 12, 4  # bytes of fp32 weights with or without two moments

MOVES: dict[str, tuple[RunConfig, list[int]]] = {
    "TP2 stays": (growth_of("random", TP2, TP2), [0, 0]),
    "replicas stay": (growth_of("random", REPLICATED, REPLICATED), [0, 0]),
    "replicas have what TP2 needs": (growth_of("copying_stack", REPLICATED, TP2), [0, 0]),
    # Layers 0 0 | 1 1 of sources 0 | 1.
    "PP2 stays, copies are at home": (growth_of("copying_inter", PP2, PP2), [0, 0]),
    # Layers 0 1 | fresh of sources 0 | 1.
    "PP2 stays, a layer comes down": (growth_of("random", PP2, PP2), [LAYER * STATE, 0]),
    "TP2 to replicas": (
        growth_of("random", TP2, REPLICATED),
        [(2 * LAYER_CUT + EMBEDDING) // 2 * STATE] * 2,
    ),
    # Both pipeline ranks hold the tied embedding.
    "TP2 to PP2": (
        growth_of("random", TP2, PP2),
        [(2 * LAYER_CUT + EMBEDDING) // 2 * STATE, EMBEDDING // 2 * STATE],
    ),
    "TP2 to PP2, reset": (
        growth_of("random", TP2, PP2, "reset"),
        [(2 * LAYER_CUT + EMBEDDING) // 2 * WEIGHTS, EMBEDDING // 2 * WEIGHTS],
    ),
    # Positions are on the first pipeline rank alone, the final norm on the last.
    "PP2 to TP2": (
        growth_of("random", PP2, TP2),
        [
            (LAYER_CUT // 2 + LAYER_WHOLE + FINAL_NORM) * STATE,
            (LAYER_CUT // 2 + LAYER_WHOLE + POSITIONS) * STATE,
        ],
    ),
}
SHARDED = {
    "distributed optimizer stays": growth_of("random", DP, DP),
    "distributed optimizer to TP2": growth_of("random", DP, TP2),
    "distributed optimizer to PP2": growth_of("copying_last", DP, PP2),
    "TP2 to distributed optimizer": growth_of("random", TP2, DP),
    "many rounds": growth_of("random", TP2, DP, model=WIDE),
    "many rounds, copies": growth_of("copying_stack", DP, TP2, model=WIDE),
}
FIRST_OF = {"random": [0, 1, None, None], "copying_last": [0, 1, 1, 1]}


def exchanges(world_size: int) -> dict[str, Exchange]:
    configs = {name: config for name, (config, _) in MOVES.items()} | SHARDED
    return {name: exchange(config, world_size) for name, config in configs.items()}


@pytest.fixture(scope="module")
def moved() -> list[dict[str, Exchange]]:
    return run_ranks(2, exchanges, 2)


@pytest.mark.parametrize("name", MOVES)
def test_bytes_received_are_those_counted_by_hand(
    name: str, moved: list[dict[str, Exchange]]
) -> None:
    assert [rank[name][2] for rank in moved] == MOVES[name][1]


@pytest.mark.parametrize("name", [name for name in SHARDED if "copies" not in name])
def test_a_rank_receives_what_it_needs_and_has_not(
    name: str, moved: list[dict[str, Exchange]]
) -> None:
    """Counted element by element: flat ranges of the distributed optimizer cut anywhere."""
    config = SHARDED[name]
    layers = FIRST_OF[config.stages[1].grow.depth]
    source_model, _ = (stage.model for stage in config.resolve(2))
    for rank in moved:
        source, target, received = rank[name]
        needed = 0
        for key, tensor in logical_tensors(source_model).items():
            for kind in ("main_param", "exp_avg", "exp_avg_sq"):
                has, wants = np.zeros(tensor.shape, bool), np.zeros(tensor.shape, bool)
                for part in source:
                    if (part.key, part.kind) == (key, kind):
                        has[slices(part.box)] = True
                for part in target:
                    if (part.key, part.kind) != (key, kind):
                        continue
                    for box in [part.box] if not tensor.stacked else _drawn(part.box, layers):
                        wants[slices(box)] = True
                needed += (wants & ~has).sum()
        assert received == 4 * needed


def _drawn(box: tuple, layers: list[int | None]) -> list[tuple]:
    origins = [layers[layer] for layer in range(*box[0])]
    return [((origin, origin + 1), *box[1:]) for origin in origins if origin is not None]


@pytest.mark.parametrize("name", [*MOVES, *SHARDED])
def test_what_moves_arrives(name: str, moved: list[dict[str, Exchange]]) -> None:
    config = SHARDED[name] if name in SHARDED else MOVES[name][0]
    source_stage, target_stage = config.resolve(2)
    grow_section = target_stage.grow
    source = assemble(logical_tensors(source_stage.model), [rank[name][0] for rank in moved])
    target = assemble(logical_tensors(target_stage.model), [rank[name][1] for rank in moved])
    layers = {**FIRST_OF, "copying_stack": [0, 1, 0, 1], "copying_inter": [0, 0, 1, 1]}
    for (key, kind), values in target.items():
        if kind != "main_param" and grow_section.optimizer_state == "reset":
            assert not values.any()
        elif ".layers." not in key:
            assert np.array_equal(values, source[key, kind])
        else:
            for layer, origin in enumerate(layers[grow_section.depth]):
                if origin is not None:
                    assert np.array_equal(values[layer], source[key, kind][origin])


# Fresh layers along a chain.


def grown_twice(world_size: int) -> list[Part]:
    layouts = {1: [DP] * 3, 4: [DP, TP2_PP2, PP2]}[world_size]
    config = chain([0, 2, 6], layouts)
    live = begin(config, world_size)
    for _ in range(2):
        live = grow(live, config, world_size)
    parts = snapshot(live.pieces())
    live.release()
    return parts


@pytest.mark.parametrize("world_size", [1, 4])
def test_a_chain_of_fresh_layers_is_the_target_at_its_start(world_size: int) -> None:
    """Untrained, 0 -> 2 -> 6 layers are the 6 that a fixed-size run begins with, bit for bit."""
    tensors = logical_tensors(replace(MODEL, num_layers=6))
    state = assemble(tensors, run_ranks(world_size, grown_twice, world_size))
    for key, tensor in tensors.items():
        whole = fresh(tensor, full(tensor.shape), tensor.init, seed=1234)
        assert np.array_equal(state[key, "main_param"], whole)
