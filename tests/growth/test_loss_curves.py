"""The same run gives the same losses on every layout, before and after a growth."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from tests.distributed import run_ranks
from tests.toy import MODEL, grown_run, layout, run_config, train

VPP2 = layout(pp=2, virtual_pipeline_model_parallel_size=2)


def by_hand(pp: int, stages: str, **more: Any) -> dict[str, Any]:
    """A pipeline whose stages are written out."""
    return layout(pp=pp, pipeline_model_parallel_layout=stages, **more)


# Of two layers, then four.
LAYOUTS = {
    "DP2": (2, layout(), layout()),
    "DP2 without distributed optimizer": (
        2,
        layout(use_distributed_optimizer=False),
        layout(use_distributed_optimizer=False),
    ),
    "TP2": (2, layout(tp=2), layout(tp=2)),
    "TP2 with sequence parallelism": (
        2,
        layout(tp=2, sequence_parallel=True),
        layout(tp=2, sequence_parallel=True),
    ),
    "PP2": (2, layout(pp=2), layout(pp=2)),
    "TP2 PP2": (4, layout(tp=2, pp=2), layout(tp=2, pp=2)),
    "DP4 to TP2 PP2": (4, layout(), layout(tp=2, pp=2, sequence_parallel=True)),
    "TP2 PP2 to DP2 PP2": (4, layout(tp=2, pp=2), layout(pp=2)),
    "DP2 to PP2 VPP2": (2, layout(), VPP2),
    "VPP2 with bare ends to TP2": (2, by_hand(2, "E|t|t|L"), layout(tp=2, sequence_parallel=True)),
    "bare embedding to a short first stage": (
        2,
        by_hand(2, "E|ttL"),
        layout(pp=2, num_layers_in_first_pipeline_stage=1),
    ),
    "PP2 DP2 to TP2 PP2 VPP2": (
        4,
        layout(pp=2),
        VPP2 | {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    ),
    "idle ranks to PP2 VPP2 DP2, overlapped": (
        4,
        by_hand(4, "Et|||tL"),
        VPP2 | {"overlap_grad_reduce": True, "overlap_param_gather": True},
    ),
}
# Of one layer, then three: what counts as a layer takes its place.
COUNTED = {
    "embedding counted, then loss and interleaved": (
        2,
        layout(pp=2, account_for_embedding_in_pipeline_split=True),
        VPP2 | {"account_for_loss_in_pipeline_split": True},
    ),
}
CASES = {name: ((2, 4), case) for name, case in LAYOUTS.items()} | {
    name: ((1, 3), case) for name, case in COUNTED.items()
}


def run(before: dict[str, Any], after: dict[str, Any], depths: tuple[int, int]) -> RunConfig:
    """Ten steps with the first depth, ten with the second."""
    source, target = depths
    return grown_run(before, after, source_layers=source, model=replace(MODEL, num_layers=target))


@functools.cache
def one_rank(depths: tuple[int, int]) -> list[float]:
    return run_ranks(1, train, run(layout(), layout(), depths), 1)[0].losses


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_before_and_ten_after_a_growth(name: str) -> None:
    depths, (world_size, before, after) = CASES[name]
    for trace in run_ranks(world_size, train, run(before, after, depths), world_size):
        assert len(trace.losses) == 20
        assert trace.losses == pytest.approx(one_rank(depths), rel=1e-5)


def test_the_run_learns() -> None:
    """The losses above are not equal because nothing happens."""
    losses = one_rank((2, 4))
    assert losses[-1] < 0.9 * losses[0]


def compound(first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]) -> RunConfig:
    """Depth, positions, length and batch grow together: 16 x 4 tokens, 4 x 8, 8 x 16."""
    return run_config(
        StageSection(
            until=6,
            model={"num_layers": 0, "max_position_embeddings": 4},
            train={"seq_length": 4, "global_batch_size": 16, "micro_batch_size": 2},
            parallel=first,
        ),
        StageSection(
            until=12,
            model={"num_layers": 2},
            train={"seq_length": 8, "global_batch_size": 4},
            grow=GrowSection(depth="random", positions="copy"),
            parallel=second,
        ),
        StageSection(grow=GrowSection(depth="copying_stack"), parallel=third),
    )


SP2 = layout(tp=2, sequence_parallel=True)


@pytest.fixture(scope="module")
def compound_on_one_rank() -> list[float]:
    return run_ranks(1, train, compound(layout(), layout(), layout()), 1)[0].losses


@pytest.mark.parametrize(
    ("world_size", "layouts"),
    [(2, (layout(), SP2, layout(pp=2))), (4, (layout(), layout(pp=2), layout(tp=2, pp=2)))],
    ids=["DP2 to TP2 SP to PP2", "DP4 to PP2 DP2 to TP2 PP2"],
)
def test_depth_length_and_batch_grow_alike(
    world_size: int, layouts: tuple[dict, dict, dict], compound_on_one_rank: list[float]
) -> None:
    for trace in run_ranks(world_size, train, compound(*layouts), world_size):
        assert len(trace.losses) == 20
        assert trace.losses == pytest.approx(compound_on_one_rank, rel=1e-5)
