"""A stage that releases a model: the branch, and the run that goes on as if there were none."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import yaml

from megatron_grow.checkpoint.layout import TRACKER
from megatron_grow.checkpoint.open import open_reader
from megatron_grow.convert.compare import compare
from megatron_grow.convert.progress import Progress
from tests.train.command import launch, losses, rows, steps_saved
from tests.train.processes import at_step, start_ranks

PEAK, LEAST = 3e-3, 1e-4
NARROW = {"ffn_hidden_size": 64}
FLAT = ["--model.ffn_hidden_size", "64", "--stages", "[]"]
"""The small model alone; it is as deep as the large one, whose depth its initial weights know."""


RULE = {"rule": "loss_below", "loss": 100, "at_least": 10, "every": 5, "at_most": 15}
"""It ends the stage when it is first asked: after step 10."""


def _stages(release: dict | None, *layouts: dict, until: int | dict = 10) -> list[str]:
    """Narrow for 10 steps, then twice as wide in the feed-forward for another 10."""
    first, second = layouts or ({}, {})
    stages = [
        {"until": until, "model": NARROW, "parallel": first, "release": release},
        {"grow": {"ffn": "fpi"}, "parallel": second},
    ]
    rates = ["--optimizer.min_lr", str(LEAST), "--train.eval_interval", "5"]
    return ["--stages", yaml.safe_dump(stages, default_flow_style=True), *rates]


def _trained(workplace: Path, name: str, *options: str, world_size: int = 1) -> str:
    code, output, errors = launch(workplace, name, *options, world_size=world_size)
    assert code == 0, errors
    return output


def _same_state(a: Path, b: Path, *, weights_only: bool = False) -> None:
    found = compare(
        open_reader(a), open_reader(b), weights_only=weights_only, progress=Progress(False)
    )
    assert found.same and not found.differences


@pytest.fixture(scope="module")
def released(workplace: Path) -> Path:
    """On one rank, with a branch of 4 steps."""
    release = {"name": "small", "decay_iters": 0.4, "export_hf": True}
    output = _trained(workplace, "released", *_stages(release))
    assert "stages[0], after step 10: releases small after 4 steps of its own" in output
    assert "step 10/20 | releases small: 4 steps of its own" in output
    return workplace / "released"


def test_the_run_goes_on_as_if_there_were_no_branch(workplace: Path, released: Path) -> None:
    _trained(workplace, "plain", *_stages(None))
    expected = losses(workplace, "plain")
    assert losses(workplace, "released") == expected and len(expected) == 20
    _same_state(*(workplace / name / "checkpoints" for name in ("plain", "released")))
    assert (released / "checkpoints" / TRACKER).read_text() == "20"
    kept = ("growth", "release")
    (release, growth) = (row for row in rows(workplace, "released") if row.get("event") in kept)
    assert (release["event"], release["step"], release["steps"]) == ("release", 10, 4)
    (expected_growth,) = (row for row in rows(workplace, "plain") if row.get("event") == "growth")
    for name in ("val_loss_before", "val_loss_after", "summary"):
        assert growth[name] == expected_growth[name]


def test_the_branch_is_the_small_model_with_a_decay(workplace: Path, released: Path) -> None:
    """A run of the small model alone, of the same tokens, that cools down at the same steps."""
    decay = ["--train.train_iters", "14", "--schedule.lr_decay_iters", "20"]
    decay += ["--schedule.cooldown_iters", "4", "--optimizer.min_lr", str(LEAST)]
    _trained(workplace, "alone", *FLAT, *decay)
    name = "released/releases/small"
    alone, branch = losses(workplace, "alone"), losses(workplace, name)
    assert branch == {step: alone[step] for step in (11, 12, 13, 14)}
    rates = [row["lr"] for row in rows(workplace, name) if "loss" in row]
    assert rates == pytest.approx([PEAK - (PEAK - LEAST) * k / 4 for k in (1, 2, 3, 4)])
    directory = workplace / name
    _same_state(workplace / "alone" / "checkpoints", directory / "checkpoints")
    _same_state(directory / "checkpoints", directory / "huggingface", weights_only=True)
    last = [row for row in rows(workplace, name) if "val_loss" in row][-1]
    assert last["step"] == 14
    assert last["flops_total"] == rows(workplace, "alone")[-1]["flops_total"]


def _killed_at(step: int, rank: int, argv: list[str]) -> None:
    at_step(step, partial(os.kill, os.getpid(), signal.SIGKILL))


def test_a_kill_in_a_branch(workplace: Path, released: Path, tmp_path: Path) -> None:
    """In step 13 of the branch, which has saved step 12; the same command loses nothing."""
    release = {"name": "small", "decay_iters": 0.4, "export_hf": True}
    saving = ["--checkpoint.save_interval", "4", "--checkpoint.load", "auto"]
    options = [*_stages(release), *saving]
    argv = ["--config", str(workplace / "run.yaml")]
    argv += ["--run.output_dir", str(workplace / "killed"), *options]
    (killed,) = start_ranks(tmp_path, argv, partial(_killed_at, 13), world_size=1)
    assert killed.code == -signal.SIGKILL, killed.errors
    branch = "killed/releases/small"
    assert steps_saved(workplace, "killed")[-1] == 10 and steps_saved(workplace, branch) == [12]
    assert losses(workplace, branch).keys() == {11, 12}

    output = _trained(workplace, "killed", *options)
    assert "another process" not in output, "a lock of the dead keeps nobody out"
    for name in ("", "/releases/small"):
        ours, theirs = (f"{run}{name}" for run in ("killed", "released"))
        assert losses(workplace, ours) == losses(workplace, theirs)
        _same_state(*(workplace / each / "checkpoints" for each in (ours, theirs)))
    steps = [row["step"] for row in rows(workplace, branch) if "loss" in row]
    assert steps == [11, 12, 13, 14], "each once"
    assert (workplace / branch / "huggingface").is_dir()
    status = json.loads((workplace / "killed" / "status.json").read_text())
    assert status["status"] == "done"


def test_a_run_that_goes_back_releases_anew(workplace: Path, released: Path) -> None:
    """What it had released from another checkpoint of that step is set aside."""
    branch = "released/releases/small"
    finished = losses(workplace, branch)
    release = {"name": "small", "decay_iters": 0.4, "export_hf": True}
    for step, others in ((10, []), (5, ["--optimizer.lr", "0.002"])):
        back = ["--checkpoint.load", str(released / "checkpoints" / f"iter_{step:07d}"), *others]
        output = _trained(workplace, "released", *_stages(release), *back)
        assert ("releases small" in output) == (step == 5)
        # From the very checkpoint that it had left, it is finished.
        assert (losses(workplace, branch) == finished) == (step == 10)
        assert losses(workplace, branch).keys() == finished.keys()
    (aside,) = (workplace / branch).glob("set_aside_*")
    old = [json.loads(line) for line in (aside / "metrics.jsonl").open()]
    assert {row["step"]: row["loss"] for row in old if "loss" in row} == finished
    assert (aside / "huggingface").is_dir() and (workplace / branch / "huggingface").is_dir()


TP2 = {
    "tensor_model_parallel_size": 2,
    "sequence_parallel": True,
    "use_distributed_optimizer": True,
}
PP2 = {"pipeline_model_parallel_size": 2, "use_distributed_optimizer": True}


def test_a_stop_in_a_branch_on_four_ranks(workplace: Path) -> None:
    """A rule ends the stage, the job stops in step 12 of the branch, and goes on with the small
    model on another layout; then the trunk has the bits of a run without a branch."""
    release = {"decay_iters": 4}
    _trained(workplace, "plain-4", *_stages(None, TP2, PP2, until=RULE), world_size=4)
    options = _stages(release, TP2, PP2, until=RULE)
    code, output, errors = launch(workplace, "stopped-4", *options, world_size=4, stop_at=12)
    directory, branch = workplace / "stopped-4", "stopped-4/releases/stage_0"
    assert code == 75, errors
    assert f"{directory / 'checkpoints'} holds everything" in output.splitlines()[-1]
    assert json.loads((directory / "status.json").read_text())["status"] == "stopped"
    assert (directory / "checkpoints" / TRACKER).read_text() == "10"
    assert steps_saved(workplace, branch) == [12]
    assert not list(directory.rglob(".lock*")), "no lock is left"
    before = losses(workplace, branch)
    assert before.keys() == {11, 12}

    options = _stages(release, {**TP2, "sequence_parallel": False}, PP2, until=RULE)
    resumed = ["--checkpoint.load", "auto", "--checkpoint.keep_last", "1"]
    _trained(workplace, "stopped-4", *options, *resumed, world_size=4)
    assert steps_saved(workplace, "stopped-4") == [10, 20], "what a branch leaves is kept"
    assert losses(workplace, "stopped-4") == losses(workplace, "plain-4")
    _same_state(*(workplace / name / "checkpoints" for name in ("plain-4", "stopped-4")))
    after = losses(workplace, branch)
    assert after.keys() == {11, 12, 13, 14} and before.items() <= after.items()
