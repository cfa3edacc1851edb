"""A run that was interrupted goes on as if it had not been: before, after and across a growth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.config.stages import StageSection
from megatron_grow.live.stage import LiveStage
from tests.checkpoint.live import resume, train_to, write
from tests.distributed import run_ranks
from tests.toy import begin, grow, layout, run_config

BEFORE, GROWTH, AFTER, END = 3, 5, 8, 18
"""A checkpoint before the growth, the growth, a checkpoint after it, the end of the run."""
DP, TP2, PP2 = layout(), layout(tp=2, sequence_parallel=True), layout(pp=2)
VPP2 = layout(pp=2, virtual_pipeline_model_parallel_size=2)
SAVED = (2, DP, TP2)
KINDS: dict[str, dict[str, Any]] = {
    "adam": {},
    "bf16": {"precision": "bf16"},
    "muon": {"optimizer": OptimizerSection(optimizer="muon", lr=1e-2)},
    "length and batch": {},
    "multipliers": {
        "optimizer": OptimizerSection(
            lr=1e-2,
            weight_decay=0.1,
            multipliers=[
                {"tensors": "head", "lr": 0.2, "weight_decay": 3.0, "eps": 1e4},
                {"tensors": "decoder.layers.mlp.*", "lr": 2.0},
            ],
        )
    },
    "import path": {
        "optimizer": OptimizerSection(
            "tests.optim.rmsprop:RMSprop", lr=1e-2, weight_decay=0.0, options={"eps": 1e-2}
        )
    },
}
SHORT = {"seq_length": 8, "global_batch_size": 16, "micro_batch_size": 4}
"""What the first stage of "length and batch" reads; the second reads 4 x 16."""
# Ranks, layouts before and after the growth, and what is resumed there.
RESUMED: dict[str, tuple[int, dict, dict, list[str]]] = {
    "the same layout": (*SAVED, list(KINDS)),
    "TP2, then PP2": (
        2,
        TP2,
        PP2,
        ["adam", "muon", "length and batch", "multipliers", "import path"],
    ),
    "TP2, then PP2 VPP2": (2, TP2, VPP2, ["adam"]),
    "one rank": (1, DP, DP, ["adam"]),
}


def config_of(kind: str, before: dict[str, Any], after: dict[str, Any]) -> RunConfig:
    return run_config(
        StageSection(
            until=GROWTH,
            model={"num_layers": 1},
            train=SHORT if kind == "length and batch" else {},
            parallel=before,
        ),
        StageSection(parallel=after, grow=GrowSection(depth="random")),
        global_batch_size=4,
        micro_batch_size=2,
        eval_iters=2,
        **KINDS[kind],
    )


def uninterrupted(root: Path) -> dict[str, list[float]]:
    """On a rank: the losses of the whole run; it saves on its way, twice."""
    world_size, before, after = SAVED
    found = {}
    for kind in KINDS:
        config = config_of(kind, before, after)
        live = begin(config, world_size)
        losses = train_to(live, config, 0, BEFORE)
        write(live, config, root / kind, BEFORE)
        losses += train_to(live, config, BEFORE, GROWTH)
        live = grow(live, config, world_size)
        losses += train_to(live, config, GROWTH, AFTER)
        write(live, config, root / kind, AFTER)
        losses += train_to(live, config, AFTER, END)
        live.release()
        found[kind] = losses
    return found


def resumed(root: Path, world_size: int) -> dict[tuple[str, str, int], list[float]]:
    """On a rank: the ten losses after each checkpoint, on each layout."""
    found = {}
    for where, (size, before, after, kinds) in RESUMED.items():
        for kind in kinds if size == world_size else []:
            config = config_of(kind, before, after)
            for step in (BEFORE, AFTER):
                path = root / kind / f"iter_{step:07d}"
                live = resume(path, config, world_size)
                found[where, kind, step] = ten_steps(live, config, world_size, step)
    return found


def ten_steps(live: LiveStage, config: RunConfig, world_size: int, first: int) -> list[float]:
    losses, last = [], first + 10
    if first < GROWTH:
        losses = train_to(live, config, first, GROWTH)
        live = grow(live, config, world_size)
        first = GROWTH
    losses += train_to(live, config, first, last)
    live.release()
    return losses


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """Of the uninterrupted run and of the resumed ones; the same on every rank."""
    root = tmp_path_factory.mktemp("checkpoints")
    whole = run_ranks(SAVED[0], uninterrupted, root)
    assert whole[0] == whole[1]
    parts: dict = {}
    for size in (1, 2):
        ranks = run_ranks(size, resumed, root, size)
        assert all(rank == ranks[0] for rank in ranks)
        parts |= ranks[0]
    return whole[0], parts


@pytest.mark.parametrize("step", [BEFORE, AFTER], ids=["across the growth", "after the growth"])
@pytest.mark.parametrize(
    ("where", "kind"), [(where, kind) for where, case in RESUMED.items() for kind in case[3]]
)
def test_ten_steps_after_a_resume(
    where: str, kind: str, step: int, losses: tuple[dict, dict]
) -> None:
    whole, parts = losses
    expected, found = whole[kind][step : step + 10], parts[where, kind, step]
    assert len(found) == 10
    if where == "the same layout":
        assert found == expected
    else:
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_steps_differ(losses: tuple[dict, dict]) -> None:
    """A run that stood still would be resumed as well."""
    whole, _ = losses
    for kind in KINDS:
        assert len(whole[kind]) == len(set(whole[kind])) == END
