"""A file system that refuses before the run begins: one line, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_grow.checkpoint import lock
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import RunSection
from megatron_grow.train import run_directory
from tests.distributed import run_ranks
from tests.train.command import launch


def _file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")
    return path


def _directory(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


Obstacle = Callable[[Path], tuple[Path, list[str]]]
OBSTACLES: dict[str, Obstacle] = {
    "a file for output_dir": lambda run: (_file(run), []),
    "a file above output_dir": lambda run: (_file(run), ["--run.output_dir", f"{run}/a/b"]),
    "a file for checkpoints": lambda run: (_file(run / "checkpoints"), []),
    "a file above checkpoints": lambda run: (
        _file(run.with_name("f")),
        ["--checkpoint.save", f"{run.with_name('f')}/a"],
    ),
    "a kernel's directory": lambda run: (Path("/proc/none"), ["--run.output_dir", "/proc/none/a"]),
    "a directory for metrics": lambda run: (_directory(run / "metrics.jsonl"), []),
    "a directory for config.yaml": lambda run: (_directory(run / "config.yaml"), []),
    "a file for tensorboard": lambda run: (
        _file(run / "tensorboard"),
        ["--logging.tensorboard", "true"],
    ),
    "a file for the cache": lambda run: (
        _file(run.with_name("c")),
        ["--data.cache_dir", f"{run.with_name('c')}"],
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_stands_in_the_way_is_one_line(workplace: Path, name: str) -> None:
    run = workplace / name.replace(" ", "_") / "run"
    run.parent.mkdir()
    path, options = OBSTACLES[name](run)
    code, _, errors = launch(workplace, str(run.relative_to(workplace)), *options)
    assert code == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert str(path) in errors


def _claim_when_full(output: Path, leftover: Path) -> bool:
    """Whether what a failed save left is still there, once the run has its directories."""
    create = lock._create

    def full(*args: Any) -> bool:
        if leftover.exists():
            raise OSError(28, "No space left on device")
        return create(*args)

    lock._create = full  # this process ends after the test
    with run_directory.claimed(RunConfig(run=RunSection(output_dir=str(output)))):
        return leftover.exists()


def test_a_disk_that_a_failed_save_has_filled_heals(tmp_path: Path) -> None:
    leftover = _directory(tmp_path / "checkpoints" / ".iter_0000020.abcd.partial")
    _file(leftover / "__0_0.distcp")
    assert run_ranks(1, _claim_when_full, tmp_path, leftover) == [False]


def _claim_full(output: Path) -> str:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    run_directory._prove_room = full  # this process ends after the test
    try:
        with run_directory.claimed(RunConfig(run=RunSection(output_dir=str(output)))):
            return "begins"
    except run_directory.UserError as error:
        return str(error)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    [said] = run_ranks(1, _claim_full, tmp_path / "run")
    assert str(tmp_path / "run") in said and "No space left on device" in said
    assert not (tmp_path / "run").exists()
