"""A request to stop that comes at an awkward moment: nothing is lost, and the resume is exact."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.train.command import launch, losses, rows, steps_saved


def stopped_in(argv: list[str], moment: str) -> tuple[int, str, str]:
    """Run the command on this rank; the whole process group of rank 1 receives SIGTERM."""
    from megatron_grow.live import passes
    from megatron_grow.live import stage as live_stage
    from megatron_grow.train import preflight, trainer
    from megatron_grow.train.entry import main

    if os.environ["RANK"] == "1":
        os.setpgid(0, 0)  # the rank and its loader processes

        def signalling(original: Callable, when: Callable[..., bool]) -> Callable:
            def called(*args: Any, **more: Any) -> Any:
                if when(*args, **more):
                    os.killpg(0, signal.SIGTERM)
                return original(*args, **more)

            return called

        live = live_stage.LiveStage
        if moment == "a step":
            live.forward_backward = signalling(  # type: ignore[method-assign]
                live.forward_backward, lambda _, step, __: step == 8
            )
        elif moment == "an evaluation":
            batches = iter(range(1000))
            passes.Passes.run = signalling(  # type: ignore[method-assign]
                passes.Passes.run,
                lambda *_, forward_only=False: forward_only and next(batches) == 1,
            )
        elif moment == "the checks":
            preflight.check = signalling(preflight.check, lambda *_: True)
        else:
            trainer.grow = signalling(trainer.grow, lambda *_, **__: True)
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(argv)
    return code, output.getvalue(), errors.getvalue()


WORKERS = ["--data.num_workers", "2", "--train.eval_iters", "4", "--train.train_iters", "14"]
WORKERS += ["--model.hidden_dropout", "0.1", "--model.attention_dropout", "0.1"]
WORKERS += ["--train.eval_interval", "4", "--stages"]
STAGES = [
    {"until": 10, "model": {"num_layers": 0}},
    {"grow": {"depth": "random"}, "parallel": {"tensor_model_parallel_size": 2}},
]
WORKERS.append(json.dumps(STAGES))


@pytest.fixture(scope="module")
def whole(workplace: Path) -> list[dict]:
    code, _, errors = launch(workplace, "whole", *WORKERS)
    assert code == 0, errors
    return what_was_measured(workplace, "whole")


def what_was_measured(workplace: Path, name: str) -> list[dict]:
    """Losses by step and stage; those of a growth in whichever row they are."""
    found = {}
    for row in rows(workplace, name):
        place = row["step"], row["stage"]
        if row.get("val_loss_after") is not None:
            found[(*place, "valid")] = row["val_loss_after"]
        if "val_loss" in row:
            found[(*place, "valid")] = row["val_loss"]
        if "loss" in row:
            found[(*place, "train")] = row["loss"]
    return sorted(found.items())


@pytest.mark.parametrize(
    ("moment", "saved", "interval"),
    [("a step", 8, 0), ("an evaluation", 4, 0), ("a growth", 10, 0), ("a growth", 10, 10)],
)
def test_loader_processes_live_and_nothing_is_lost(
    workplace: Path, whole: list[dict], moment: str, saved: int, interval: int
) -> None:
    name = f"{moment}_{interval}".replace(" ", "_")
    argv = ["--config", str(workplace / "run.yaml"), "--run.output_dir", str(workplace / name)]
    options = [*WORKERS, "--checkpoint.save_interval", str(interval)]
    found = run_ranks(2, stopped_in, [*argv, *options], moment)
    assert [code for code, _, _ in found] == [75, 75], found
    assert "stopped as asked" in found[0][1]
    assert steps_saved(workplace, name) == [saved]
    status = json.loads((workplace / name / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("stopped", 75)
    assert (saved, 0, "valid") not in dict(what_was_measured(workplace, name)) or saved == 10
    code, _, errors = launch(workplace, name, *options, "--checkpoint.load", "auto")
    assert code == 0, errors
    assert what_was_measured(workplace, name) == whole
    assert json.loads((workplace / name / "status.json").read_text())["status"] == "done"
    (growth,) = [row for row in rows(workplace, name) if row.get("event") == "growth"]
    assert growth["val_loss_before"] is not None
    assert sorted(losses(workplace, name)) == list(range(1, 15))


def test_steps_since_the_last_row_have_a_row_of_their_own(workplace: Path) -> None:
    options = ["--stages", "[]", "--train.eval_iters", "0", "--train.log_interval", "3"]
    assert launch(workplace, "sparse", *options, stop_at=5)[0] == 75
    assert sorted(losses(workplace, "sparse")) == [3, 5]


def test_a_request_before_the_first_step(workplace: Path) -> None:
    argv = ["--config", str(workplace / "run.yaml"), "--run.output_dir", str(workplace / "early")]
    found = run_ranks(2, stopped_in, argv, "the checks")
    assert [code for code, _, _ in found] == [75, 75], found
    assert "run the same command again" in found[0][1]
    assert json.loads((workplace / "early" / "status.json").read_text())["status"] == "stopped"
    assert steps_saved(workplace, "early") == []
    assert launch(workplace, "early", "--train.train_iters", "2", "--stages", "[]")[0] == 0
