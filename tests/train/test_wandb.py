"""Weights & Biases: a run that is resumed is one run there too."""

from __future__ import annotations

import contextlib
import importlib.machinery
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

from tests.distributed import run_ranks


def with_fake_wandb(commands: list[list[str]]) -> list[tuple[int, dict[str, Any], list[int]]]:
    """Per command: its exit code, what the service was asked for, and the steps it was told."""
    from megatron_grow.parallel import process_groups
    from megatron_grow.train.entry import main

    asked: list[dict[str, Any]] = []
    steps: list[int] = []

    class Service:
        def __init__(self, **options: Any) -> None:
            asked.append(options)
            self.id = options["id"] or f"run-{len(asked)}"

        def log(self, scalars: dict, step: int) -> None:
            steps.append(step)

        def finish(self) -> None:
            pass

    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.init = Service  # type: ignore[attr-defined]
    sys.modules["wandb"] = module
    process_groups.stop = process_groups.tear_down  # the next command is another job of this rank
    results = []
    for argv in commands:
        steps = []
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = main(argv)
        results.append((code, asked[-1], steps))
    return results


def test_a_resumed_run_goes_on_there(workplace: Path) -> None:
    argv = ["--config", str(workplace / "run.yaml"), "--run.output_dir", str(workplace / "logged")]
    argv += ["--stages", "[]", "--logging.wandb_project", "mine", "--checkpoint.save_interval", "2"]
    first = [*argv, "--train.train_iters", "4"]
    # the schedule is not compared: it depends on train_iters
    second = [*argv, "--train.train_iters", "6", "--checkpoint.load", "auto"]
    (a, begun, told), (b, resumed, told_again) = run_ranks(1, with_fake_wandb, [first, second])[0]
    assert (a, b) == (0, 0)
    assert (begun["id"], begun["resume"], begun["project"]) == (None, None, "mine")
    assert (resumed["id"], resumed["resume"]) == ("run-1", "allow")
    assert set(told) == {1, 2, 3, 4} and set(told_again) == {5, 6}
    record = workplace / "logged/checkpoints/iter_0000006/megatron_grow.json"
    assert json.loads(record.read_text())["wandb_id"] == "run-1"
