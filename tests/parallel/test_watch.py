"""When a rank takes the job for lost, second by second, and how it names the ranks that are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_grow.parallel import last_words, roll_call, watch
from megatron_grow.parallel.patience import Limits, during, goes_on
from megatron_grow.parallel.roll_call import RollCall
from megatron_grow.parallel.watch import Watch


class Neighbour(RollCall):
    """Rank 1 of 2, which listens to rank 0."""

    def __init__(self) -> None:
        super().__init__(dist.HashStore(), rank=1, world_size=2)
        self.lives, self.store_answers = True, threading.Event()
        self.store_answers.set()

    def answer(self) -> None:
        super().answer()
        self.store_answers.wait()
        if self.lives:
            self._store.add("alive_0", 1)


Ticks = Callable[[int], str | None]


@pytest.fixture
def neighbour(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Neighbour, Ticks]]:
    """It, and what counts so many seconds and gives the last answer."""
    monkeypatch.setattr(watch, "_TICK", 3600)
    other = Neighbour()
    made = Watch(other, Limits(), holds_store=False)

    def ticks(seconds: int) -> str | None:
        found = None
        for _ in range(seconds):
            if other.store_answers.is_set():
                made._asked.result()
            found = made.tick()
        return found

    yield other, ticks
    other.store_answers.set()
    made.end()


def test_a_step_may_take_ten_minutes(neighbour: tuple[Neighbour, Ticks]) -> None:
    _, ticks = neighbour
    with during("step 5"):
        assert ticks(599) is None
        assert "600 s (train.distributed_timeout_minutes)" in str(ticks(1))
        goes_on()
        assert ticks(599) is None


def test_a_pause_within_a_step_may_take_thirty(neighbour: tuple[Neighbour, Ticks]) -> None:
    _, ticks = neighbour
    with during("step 5"):
        ticks(500)
        with during("the save after step 5", pause=True):
            assert ticks(1799) is None
            assert "1800 s (train.pause_timeout_minutes)" in str(ticks(1))
        assert ticks(599) is None, "the step has the rest of its own time and more"


@pytest.mark.parametrize("pause", [True, False])
def test_a_silent_rank_is_noticed_in_two_minutes(
    neighbour: tuple[Neighbour, Ticks], pause: bool
) -> None:
    other, ticks = neighbour
    with during("something", pause=pause):
        ticks(10)
        other.lives = False
        assert ticks(119) is None
        assert "heard nothing for 120 s" in str(ticks(1))


def test_a_rank_may_be_silent_for_longer_while_a_run_starts(
    neighbour: tuple[Neighbour, Ticks],
) -> None:
    other, ticks = neighbour
    goes_on()
    other.lives = False
    assert ticks(1799) is None and ticks(2) is not None
    goes_on()


def test_a_store_that_does_not_answer(neighbour: tuple[Neighbour, Ticks]) -> None:
    other, ticks = neighbour
    with during("something"):
        ticks(10)
        other.store_answers.clear()
        assert ticks(119) is None
        assert "heard nothing for 120 s" in str(ticks(1))


def test_a_roll_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "_LISTENS", 1.0)
    store, ended = dist.HashStore(), threading.Event()
    ranks = [RollCall(store, rank, 4) for rank in range(3)]  # rank 3 has not come
    for rank in ranks:
        rank.answer()

    def answers() -> None:
        while not ended.wait(0.1):
            ranks[1].answer()

    thread = threading.Thread(target=answers)
    thread.start()
    silent = ranks[0].silent()
    ended.set()
    thread.join()
    assert list(silent) == [2, 3] and silent[3] == "it has not joined"


@pytest.mark.parametrize(
    ("hosts", "named"),
    [
        ({3: "a"}, "rank 3 (a)"),
        (dict.fromkeys(range(8, 16), "b") | {17: "c", 19: "c"}, "rank 8-15 (b), 17, 19 (c)"),
        ({r: f"n{r // 2}" for r in range(12)}, "rank 0-1 (n0), 2-3 (n1), 4-5 (n2), 6-7 (n3) and 4"),
    ],
)
def test_ranks_by_their_hosts(hosts: dict[int, str], named: str) -> None:
    assert last_words.named(hosts).startswith(named)


def test_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_words, "_checkpoint", None)
    assert last_words.way_on().endswith("run the same command again")
    last_words.remember_checkpoint(Path("runs/x/iter_0000005"))
    assert "is runs/x/iter_0000005: " in last_words.way_on()
