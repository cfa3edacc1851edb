"""The same run gives the same losses on every layout, before and after a growth."""

from typing import Any

import pytest

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import GrowSection, StageSection
from tests.distributed import run_ranks
from tests.toy import grown_run, layout, run_config, train

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
}


@pytest.fixture(scope="module")
def one_rank() -> list[float]:
    return run_ranks(1, train, grown_run(layout(), layout()), 1)[0].losses


@pytest.mark.parametrize("name", LAYOUTS)
def test_ten_steps_before_and_ten_after_a_growth(name: str, one_rank: list[float]) -> None:
    world_size, before, after = LAYOUTS[name]
    for trace in run_ranks(world_size, train, grown_run(before, after), world_size):
        assert len(trace.losses) == 20
        assert trace.losses == pytest.approx(one_rank, rel=1e-5)


def test_the_run_learns(one_rank: list[float]) -> None:
    """The losses above are not equal because nothing happens."""
    assert one_rank[-1] < 0.9 * one_rank[0]


def compound(first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]) -> RunConfig:
    """Depth, length and batch grow together, twice: 16 x 4 tokens, 4 x 8, 8 x 16."""
    return run_config(
        StageSection(
            until=6,
            model={"num_layers": 0},
            train={"seq_length": 4, "global_batch_size": 16, "micro_batch_size": 2},
            parallel=first,
        ),
        StageSection(
            until=12,
            model={"num_layers": 2},
            train={"seq_length": 8, "global_batch_size": 4},
            grow=GrowSection(depth="random"),
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
