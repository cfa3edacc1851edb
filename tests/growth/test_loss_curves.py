"""The same run gives the same losses on every layout, before and after a growth."""

import pytest

from tests.distributed import run_ranks
from tests.toy import grown_run, layout, train

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
