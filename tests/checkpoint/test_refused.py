"""A file system that refuses in the middle of a save."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_grow.checkpoint import save as module
from megatron_grow.checkpoint.layout import step_dir
from megatron_grow.checkpoint.root import latest
from megatron_grow.inputs.errors import UserError
from tests.checkpoint.still import read, write
from tests.distributed import run_ranks

GOOD, NEXT = 1, 2


def _limit_files(size: int) -> None:
    """Let a write beyond ``size`` bytes of a file fail, as it does on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def _refuse_manifest(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device", "manifest.json")


def _save_refused(root: Path, where: str) -> tuple[str, list[str]]:
    """The message on this rank, and what the directory holds after a failed save."""
    write(root, 10, GOOD)
    unlimited, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if where in ("0", "1") and dist.get_rank() == int(where):
        _limit_files(1000)
    if where == "manifest":
        module.write_manifest = _refuse_manifest  # this process ends after the test
    with pytest.raises(UserError) as error:
        write(root, 20, NEXT, keep_last=1)
    dist.barrier()
    _limit_files(unlimited)
    return str(error.value), sorted(os.listdir(root))


@pytest.mark.parametrize(
    ("where", "reason"),
    [("0", "rank 0"), ("1", "rank 1"), ("manifest", "No space left on device: 'manifest.json'")],
)
def test_a_refused_save_leaves_nothing_and_says_what_is_left(
    tmp_path: Path, where: str, reason: str
) -> None:
    (said, held), other = run_ranks(2, _save_refused, tmp_path, where)
    assert (said, held) == other, "all ranks raise the same"
    assert "step 20" in said and str(tmp_path) in said and reason in said and "\n" not in said
    assert f"the last good one is {step_dir(tmp_path, 10)}" in said
    assert held == ["iter_0000010", "latest_checkpointed_iteration.txt"]
    assert latest(tmp_path) == step_dir(tmp_path, 10)
    assert read(step_dir(tmp_path, 10)) == GOOD


def _save_first(root: Path) -> str:
    _limit_files(1000)
    with pytest.raises(UserError) as error:
        write(root, 10, GOOD)
    return str(error.value)


def test_a_first_save_that_is_refused(tmp_path: Path) -> None:
    [said] = run_ranks(1, _save_first, tmp_path / "new")
    assert said.endswith("there is none before it") and not list((tmp_path / "new").iterdir())
