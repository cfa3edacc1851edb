"""kill -9 at any moment of a save: whatever looks like a checkpoint is one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_grow.checkpoint.layout import TRACKER, replaced, step_dir
from megatron_grow.checkpoint.root import latest, saved_steps
from tests.checkpoint.still import read, write
from tests.distributed import run_ranks

OLD, NEW = 1, 2
"""What is stored before, and what the killed save stores."""
SAVES: dict[str, tuple[int, dict[str, Any]]] = {
    "the next step, keeping one": (20, {"keep_last": 1}),
    "the same step again": (10, {}),
    "behind the training": (20, {"keep_last": 1, "asynchronous": True}),
}
_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}


def kill_before_change(number: int) -> None:
    """Kill this process as it is about to change the file system for the ``number``-th time."""
    seen = 0

    def watch(event: str, args: tuple) -> None:
        nonlocal seen
        writes = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes or event in _CHANGES:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def save_and_die(root: Path, step: int, options: dict[str, Any], number: int) -> None:
    write(root, 10, OLD)
    kill_before_change(number)
    write(root, step, NEW, **options)


def save_again(roots: list[Path], step: int, options: dict[str, Any]) -> None:
    for root in roots:
        write(root, step, NEW, **options)


@pytest.mark.parametrize("name", SAVES)
def test_killed_before_each_change_of_the_file_system(name: str, tmp_path: Path) -> None:
    step, options = SAVES[name]
    roots: list[Path] = []
    outcomes = []
    while True:
        root = tmp_path / str(len(roots) + 1)
        roots.append(root)
        try:
            run_ranks(1, save_and_die, root, step, options, len(roots))
            break
        except AssertionError as error:
            assert f"{-signal.SIGKILL}" in str(error)
        found = latest(root)
        assert found is not None
        outcomes.append(read(found))
        newest = step_dir(root, max(saved_steps(root), default=0))
        assert found in (newest, replaced(step_dir(root, step))), "no whole one is passed over"
        for saved in saved_steps(root):
            read(step_dir(root, saved))
    assert outcomes == sorted(outcomes)  # the new one from some change on, and from then for ever
    assert outcomes[0] == OLD
    assert len(outcomes) > 8
    # A restarted run saves as if nothing had happened, and leaves nothing behind.
    run_ranks(1, save_again, roots, step, options)
    kept = [10, 20] if not options else [20]
    for root in roots:
        assert read(latest(root)) == NEW
        names = {path.name for path in root.iterdir()}
        assert names == {TRACKER, *(step_dir(root, s).name for s in kept if s <= step)}


def test_a_replaced_checkpoint_stands_in_between_two_renames(tmp_path: Path) -> None:
    """The one moment at which no directory has the name that the tracker says."""
    run_ranks(1, save_again, [tmp_path], 10, {})
    step_dir(tmp_path, 10).rename(replaced(step_dir(tmp_path, 10)))
    assert read(latest(tmp_path)) == NEW
    run_ranks(1, save_again, [tmp_path], 20, {})
    assert read(replaced(step_dir(tmp_path, 10))) == NEW  # still the only one of its step


def first_save_and_die(root: Path, number: int) -> None:
    kill_before_change(number)
    write(root, 10, NEW)


def test_the_first_save_is_killed(tmp_path: Path) -> None:
    """There is no checkpoint, or a whole one: never one that only lacks its tracker file."""
    found = []
    while True:
        root = tmp_path / str(len(found) + 1)
        root.mkdir()
        try:
            run_ranks(1, first_save_and_die, root, len(found) + 1)
            break
        except AssertionError as error:
            assert f"{-signal.SIGKILL}" in str(error)
        newest = latest(root)
        found.append(None if newest is None else read(newest))
    assert set(found) == {None, NEW} and found[-1] == NEW


def save_while_a_rank_dies(root: Path) -> None:
    """Both ranks write; rank 1 dies as it opens its file."""
    if dist.get_rank() == 1:
        kill_before_change(1)
    write(root, 20, NEW)


def test_one_of_two_ranks_is_killed(tmp_path: Path) -> None:
    run_ranks(1, save_again, [tmp_path], 10, {})
    with pytest.raises(AssertionError, match=r"left|failed"):
        run_ranks(2, save_while_a_rank_dies, tmp_path)
    assert latest(tmp_path) == step_dir(tmp_path, 10)
    assert saved_steps(tmp_path) == [10]
    assert read(step_dir(tmp_path, 10)) == NEW
