"""A run whose loss, gradients or weights are not finite: no update, no checkpoint, no silence."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_grow.checkpoint.torch_dist.reader import TorchDistReader
from megatron_grow.state.boxes import full
from megatron_grow.state.finite import first_not_finite, is_finite
from tests.distributed import run_ranks
from tests.train.command import losses, rows, steps_saved

WEIGHT = r"(embedding|decoder)[a-z0-9_.]*(weight|bias)"
STILL = ["--stages", json.dumps([{"parallel": {"tensor_model_parallel_size": 1}}])]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_entry_is_found(bad: float, dtype: torch.dtype) -> None:
    values = torch.arange(-5000, 5000).to(dtype).view(100, 100)
    assert is_finite(values) and is_finite(values.T[::2]) and is_finite(values[:0])
    values[57, 3] = bad
    assert not is_finite(values) and not is_finite(values.T)


def test_the_first_of_many_is_found_in_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's host waits wherever it asks for a value."""
    waits = []
    for name in ("__bool__", "item", "tolist"):
        ask = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, ask=ask: (waits.append(self), ask(self))[1]
        )
    values = {name: torch.ones(3, 2) for name in "abcde"}
    assert first_not_finite([]) is first_not_finite([("a", torch.empty(0))]) is None
    assert first_not_finite(values.items()) is None
    values["d"][1, 1], values["c"][2, 0] = math.nan, math.inf
    assert first_not_finite([("none", torch.empty(0)), *values.items()]) == "c"
    assert len(waits) == 2, "one for each search with something to look at"


def faulty(argv: list[str], fault: str, steps: list[int], where: int) -> tuple[int, str, str]:
    """Run the command on this rank; ``fault`` strikes rank ``where`` in ``steps``."""
    from megatron_grow.live import stage as live_stage
    from megatron_grow.live.objective import Objective
    from megatron_grow.train.entry import main

    step = 0
    live, reported = live_stage.LiveStage, Objective.reported
    forward_backward, update = live.forward_backward, live.update
    finalize = live_stage.finalize_model_grads

    def strikes(kind: str) -> bool:
        return fault == kind and step in steps and int(os.environ["RANK"]) == where

    def stepping(self: Any, number: int, batches: Any) -> Any:
        nonlocal step
        step = number
        return forward_backward(self, number, batches)

    def updating(self: Any, *args: Any) -> None:
        update(self, *args)
        if strikes("weight"):
            weights = [piece for piece in self.pieces() if piece.kind == "main_param"]
            weights[0].data.view(-1)[0] = math.inf

    def loss(*args: Any) -> Any:
        result, shown = reported(*args)
        # the loss alone: it leaves its gradient finite, as an overflow would
        return result, ({"totals": shown["totals"] * math.nan} if strikes("loss") else shown)

    def gradients(chunks: list, *args: Any, **more: Any) -> None:
        if strikes("gradient before reduction"):
            next(chunks[0].parameters()).main_grad.view(-1)[0] = math.inf
        finalize(chunks, *args, **more)
        if strikes("gradient"):
            next(chunks[0].parameters()).main_grad.view(-1)[0] = math.inf

    live.forward_backward, live.update = stepping, updating  # type: ignore[method-assign]
    Objective.reported = loss  # type: ignore[method-assign]
    live_stage.finalize_model_grads = gradients
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(argv)
    return code, output.getvalue(), errors.getvalue()


Launch = Callable[..., tuple[int, str, str]]


@pytest.fixture
def launch(workplace: Path) -> Launch:
    def run(
        name: str, fault: str, *options: str, steps: list[int], where: int = 1
    ) -> tuple[int, str, str]:
        argv = ["--config", str(workplace / "run.yaml"), "--run.output_dir", str(workplace / name)]
        found = run_ranks(2, faulty, [*argv, *options], fault, steps, where)
        assert len({code for code, _, _ in found}) == 1, found
        assert found[1][1:] == ("", ""), "only rank 0 speaks"
        return found[0]

    return run


TENSOR_PARALLEL = ["--stages", json.dumps([{"parallel": {"tensor_model_parallel_size": 2}}])]
PIPELINE = ["--stages", json.dumps([{"parallel": {"pipeline_model_parallel_size": 2}}])]
STOPS = {
    "loss, data parallel": ("loss", STILL, "the loss is not finite on rank 1"),
    "loss, pipeline": ("loss", PIPELINE, "the loss is not finite on rank 1"),
    "one of several losses": (
        "loss",
        [*STILL, "--model.architecture", "tests.architectures.two_losses:TwoLosses"],
        "marked_loss is not finite on rank 1",
    ),
    "gradient, tensor parallel": (
        "gradient",
        TENSOR_PARALLEL,
        "the gradient of embedding.word_embeddings.weight is not finite on rank 1",
    ),
    "gradient of one replica": (
        "gradient",
        [*STILL, "--optimizer.clip_grad", "0"],
        "the gradient of embedding.word_embeddings.weight is not finite on rank 1",
    ),
    "gradient, Muon": (
        "gradient before reduction",
        [*STILL, "--optimizer.optimizer", "muon_nsgd"],
        "the gradient of embedding.word_embeddings.weight is not finite on ranks 0, 1",
    ),
}


@pytest.mark.parametrize("case", STOPS)
def test_the_run_stops_and_keeps_its_checkpoints(
    launch: Launch, workplace: Path, case: str
) -> None:
    fault, options, found = STOPS[case]
    keep = ["--checkpoint.keep_last", "1", "--checkpoint.save_interval", "4"]
    name = case.replace(" ", "_")
    code, output, errors = launch(name, fault, *options, *keep, steps=[6])
    assert code == 3, (output, errors)
    assert errors.count("\n") == 1
    for part in ("step 6: ", found, "iter_0000004", "step 4", "optimizer.lr", "non_finite: skip"):
        assert part in errors
    assert steps_saved(workplace, name) == [4]
    assert sorted(losses(workplace, name)) == [1, 2, 3, 4, 5]
    *_, last = rows(workplace, name)
    expected = {"event": "not_finite", "step": 6, "stage": 0, "action": "stop", "found": found}
    assert last == last | expected and "loss" not in last
    status = json.loads((workplace / name / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("diverged", 3)
    assert found in status["message"]


SKIP = ["--train.non_finite", "skip", "--train.max_skipped_iters", "2"]


def test_a_skipped_step_leaves_the_state_alone(launch: Launch, workplace: Path) -> None:
    options = [*STILL, *SKIP, "--train.train_iters", "8", "--checkpoint.save_interval", "1"]
    code, output, errors = launch("skipped", "loss", *options, steps=[3, 7])
    assert code == 0, errors
    assert "step 3: the loss is not finite on rank 1" in output
    assert sorted(losses(workplace, "skipped")) == list(range(1, 9))
    training = {row["step"]: row for row in rows(workplace, "skipped") if "lr" in row}
    assert training[3]["loss"] is training[7]["loss"] is None
    assert training[4]["consumed_tokens"] == 4 * 4 * 32  # the data of step 3 has been passed over
    skipped = [row for row in rows(workplace, "skipped") if row.get("event") == "not_finite"]
    assert [(row["step"], row["action"]) for row in skipped] == [(3, "skip"), (7, "skip")]
    before, after, last = (stored(workplace / "skipped", step) for step in (2, 3, 8))
    assert before.record.optimizer_step == after.record.optimizer_step == 2
    assert (last.record.step, last.record.optimizer_step, last.record.skipped_iters) == (8, 6, 2)
    for key, tensor in before.tensors.items():
        for kind in ("main_param", "exp_avg", "exp_avg_sq"):
            kept, found = (source.read(key, kind, full(tensor.shape)) for source in (before, after))
            assert torch.equal(kept, found), (kind, key)


def stored(run: Path, step: int) -> TorchDistReader:
    path = run / "checkpoints" / f"iter_{step:07d}"
    return TorchDistReader(path)


def test_a_loss_that_is_finite_and_too_large(launch: Launch, workplace: Path) -> None:
    """It is about ln(257) = 5.5 at first: two such steps are skipped, the third ends the run."""
    code, _, errors = launch("large", "none", *STILL, *SKIP, "--train.max_loss", "5", steps=[])
    assert code == 3 and errors.count("\n") == 1, errors
    assert re.match(r"error: step 3: the loss is 5\.\d+, above train.max_loss=5 \(", errors)
    found = [row for row in rows(workplace, "large") if row.get("event") == "not_finite"]
    actions = [(row["step"], row["action"]) for row in found]
    assert actions == [(1, "skip"), (2, "skip"), (3, "stop")]
    assert steps_saved(workplace, "large") == []


def test_a_resumed_run_remembers_what_it_skipped(launch: Launch, workplace: Path) -> None:
    options = [*STILL, *SKIP, "--train.train_iters", "12", "--optimizer.optimizer", "adam"]
    whole = launch("limit", "loss", *options, steps=[3, 7, 11])
    assert whole[0] == 3 and "max_skipped_iters=2" in whole[2] and "step 11: " in whole[2]
    assert "non_finite: skip" not in whole[2], "that is what it does already"
    assert steps_saved(workplace, "limit") == [5, 10]
    before = losses(workplace, "limit")
    again = launch("limit", "loss", *options, "--checkpoint.load", "auto", steps=[11])
    assert again[0] == 3 and "max_skipped_iters=2" in again[2]
    mended = launch("limit", "loss", *options, "--checkpoint.load", "auto", steps=[])
    assert mended[0] == 0
    after = losses(workplace, "limit")
    assert {step: after[step] for step in before} == before
    assert sorted(after) == list(range(1, 13))


def test_weights_that_are_not_finite_are_not_saved(launch: Launch, workplace: Path) -> None:
    """After an update that finite gradients led to, at the step of a checkpoint."""
    code, _, errors = launch("broken", "weight", *STILL, steps=[5])
    assert code == 3 and errors.count("\n") == 1
    assert re.search(f"step 5: {WEIGHT} is not finite on rank 1.* no checkpoint has been", errors)
    assert "skip" not in errors, "no skipped step would mend them"
    assert steps_saved(workplace, "broken") == []


def test_a_growth_out_of_weights_that_are_not_finite(launch: Launch, workplace: Path) -> None:
    interval = ["--checkpoint.save_interval", "7"]
    code, _, errors = launch("bad_growth", "weight", *interval, steps=[10])
    assert code == 3
    assert re.search(f"step 10: {WEIGHT} is not finite on rank 1.*iter_0000007", errors)
    assert not [row for row in rows(workplace, "bad_growth") if row.get("event") == "growth"]
