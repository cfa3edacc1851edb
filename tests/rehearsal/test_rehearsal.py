"""A run that grows on two ranks, rehearsed with checks of devices on."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.forks import apart
from tests.rehearsal.rehearsed import rehearsed


def rehearsed_with_a_count(argv: list[str]) -> tuple[dict[str, Any], str, int]:
    """And how many stretches between two events rows have asked for."""
    from megatron_grow.parallel import communication

    asked = multiprocessing.Value("i")  # by ranks, which are forked
    seconds = communication._StreamClock.seconds

    def counted(self: Any, begin: Any, end: Any) -> float | None:
        with asked:
            asked.value += 1
        return seconds(self, begin, end)

    communication._StreamClock.seconds = counted  # type: ignore[method-assign]
    return *rehearsed(argv, 2), asked.value


def rehearsed_with_a_mix(argv: list[str]) -> tuple[dict[str, Any], str]:
    """With a norm that adds a tensor of the CPU to what it has computed on the device."""
    from torch.nn import functional

    from megatron_grow.model.layers import norms

    def layer_norm(x: torch.Tensor, *options: Any) -> torch.Tensor:
        return functional.layer_norm(x, *options) + torch.ones(x.shape[-1])

    norms.functional = SimpleNamespace(layer_norm=layer_norm)  # type: ignore[assignment]
    return rehearsed(argv, 2)


def rehearsed_with_a_kill(argv: list[str]) -> tuple[dict[str, Any], str]:
    """As if the machine had no memory left for rank 1."""
    from megatron_grow.train.loop import Loop

    step = Loop.step

    def killed(self: Loop, batches: Any) -> None:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, batches)

    Loop.step = killed  # type: ignore[method-assign]
    return rehearsed(argv, 2)


def steps_taken() -> list[str]:
    """What a process says that it is at, in each step of a stage of nine."""
    from megatron_grow.parallel.patience import current
    from megatron_grow.rehearsal import shortened
    from megatron_grow.train.loop import Loop

    said = []

    class Nine(Loop):
        def __init__(self) -> None:
            stage = SimpleNamespace(last_step=9)
            self.ctx = SimpleNamespace(step=0, ends=False, stopping=False, stage=stage)

        def step(self, batches: Any) -> None:
            said.append(current().what)
            self.ctx.step += 1
            self.ctx.ends = self.ctx.step == 9

    shortened.skip_steps(2, stop=False)
    for _ in Nine().steps(None):
        said.append(current().what)
    return said


def test_steps_that_are_taken_are_waited_for_as_steps() -> None:
    between = "the start of the run"
    assert apart(steps_taken) == ["step 1", between, "step 2", between, "step 9", between]


def test_a_rank_cuts_of_a_bucket_what_megatron_core_cuts() -> None:
    from megatron.core.distributed.param_and_grad_buffer import shard_buffer

    from megatron_grow.rehearsal.shortened import Shards

    bucket = torch.arange(24.0)
    cut, whole = Shards(bucket, 4), shard_buffer(bucket, 4)
    for rank in range(4):
        assert cut[rank].equal(whole[rank])
        assert cut[rank].data_ptr() == whole[rank].data_ptr()


@pytest.fixture(scope="module")
def argv(workplace: Path) -> list[str]:
    options = {"model.hidden_size": 256, "model.vocab_size": 4096, "train.precision": "bf16"}
    told = [f"--{name}={value}" for name, value in options.items()]
    return ["--config", str(workplace / "run.yaml"), *told]


@pytest.fixture(scope="module")
def counted(argv: list[str]) -> tuple[dict[str, Any], str, int]:
    return apart(rehearsed_with_a_count, argv)


@pytest.fixture(scope="module")
def whole(counted: tuple[dict[str, Any], str, int]) -> tuple[dict[str, Any], str]:
    return counted[:2]


def phases(found: dict[str, Any], job: str, rank: int = 0) -> dict[tuple[int, str], dict[str, Any]]:
    return {(p["stage"], p["name"]): p for p in found["jobs"][job][rank]["phases"]}


def test_the_run_and_its_resume_come_to_their_ends(whole: tuple[dict[str, Any], str]) -> None:
    found, text = whole
    assert found["completed"] and found["fits"], text
    assert [rank["code"] for rank in found["jobs"]["run"]] == [75, 75]  # stopped as asked, saved
    assert [rank["code"] for rank in found["jobs"]["resume"]] == [0, 0]


def test_every_stage_a_growth_a_save_and_a_load_are_rehearsed(
    whole: tuple[dict[str, Any], str],
) -> None:
    run, resume = phases(whole[0], "run"), phases(whole[0], "resume")
    stages = {(0, "training"), (1, "training"), (1, "growth"), (1, "exchange"), (1, "evaluation")}
    assert stages | {(1, "save")} <= set(run)
    assert {(1, "load"), (1, "training"), (1, "save")} <= set(resume)
    assert run[0, "training"]["calls"] == 3  # two, and the last


def test_messages_are_told_by_kind_and_group(whole: tuple[dict[str, Any], str]) -> None:
    run = phases(whole[0], "run")

    def kinds(stage: int, phase: str) -> set[tuple[str, str, int]]:
        return {
            (each["kind"], each["group"], each["size"])
            for each in run[stage, phase]["collectives"]
            if each["device"] == "cuda"
        }

    assert ("alltoall_base_", "world", 2) in kinds(1, "exchange")
    # sequence parallelism gathers before a matrix and scatters the sums behind it
    gathered = {("_allgather_base_", "tensor_model_parallel", 2)}
    scattered = {("_reduce_scatter_base_", "tensor_model_parallel", 2)}
    assert gathered | scattered <= kinds(1, "training")
    assert not any(group.startswith("tensor") for _, group, _ in kinds(0, "training"))


def test_memory_is_told_by_part(whole: tuple[dict[str, Any], str]) -> None:
    run = phases(whole[0], "run")
    parts = run[1, "training"]["parts"]
    assert {"weights", "gradients", "optimizer", "activations"} <= set(parts)
    assert sum(parts.values()) == run[1, "training"]["peak"]
    # bf16 weights, fp32 gradients, fp32 main parameters and two moments; each rounded up
    assert parts["gradients"] == pytest.approx(2 * parts["weights"], rel=0.05)
    assert parts["optimizer"] == pytest.approx(6 * parts["weights"], rel=0.05)
    assert "old stage" in run[1, "exchange"]["parts"]


def test_a_mix_of_devices_is_found_with_its_place(argv: list[str]) -> None:
    found, text = apart(rehearsed_with_a_mix, argv)
    assert not found["completed"]
    failures = [rank["failure"] for rank in found["jobs"]["run"] if rank["failure"]]
    assert failures, text
    told = failures[0]
    assert "cpu" in told["message"] and "cuda" in told["message"], told
    assert told["place"].startswith("megatron_grow/model/layers/norms.py:"), told
    assert (told["stage"], told["phase"]) == (0, "passes")
    assert "WOULD HAVE FAILED" in text and told["place"] in text


def test_a_rank_that_is_killed_says_nothing_of_the_job(argv: list[str]) -> None:
    found, text = apart(rehearsed_with_a_kill, argv)
    assert not found["completed"]
    assert found["killed"] == [1]
    assert "NO VERDICT on the job: SIGKILL ended the process of rank 1. Most likely this" in text
    told = " ".join(text.split())
    assert re.search(r"no memory left: the 2 processes take about 0\.\d GB each\.", told)
    assert "WOULD HAVE FAILED" not in text and "Fits:" not in text


def test_checkpoints_that_would_be_large_are_not_written(
    argv: list[str], whole: tuple[dict[str, Any], str]
) -> None:
    """Neither at an interval nor at the end: no shard is copied to the host."""

    def copies(found: dict[str, Any]) -> list[str]:
        lines = [line for each in phases(found, "run").values() for line in each["host_waits"]]
        return [line for line in lines if line.startswith("megatron_grow/checkpoint/")]

    found, text = apart(rehearsed, [*argv, "--checkpoint.save_interval=1"], 2, None, False)
    assert found["completed"], text
    assert "No save and no resume were rehearsed" in text
    assert phases(found, "run")[1, "save"]["calls"] > 1  # it came to them
    assert not copies(found) and copies(whole[0])


def test_a_step_waits_for_its_norm_alone(counted: tuple[dict[str, Any], str, int]) -> None:
    """Although it asks for how long its GPU has waited: for each message at least."""
    found, _, asked = counted
    run = phases(found, "run")
    messages = sum(each["count"] for each in run[1, "training"]["collectives"])
    assert asked > 2 * messages > 0  # two ranks
    for stage in (0, 1):
        assert run[stage, "passes"]["host_waits"] == run[stage, "update"]["host_waits"] == {}
    step = run[1, "training"]
    waits = {line.rpartition(":")[0]: count for line, count in step["host_waits"].items()}
    del waits["megatron_grow/live/objective.py"]  # what a row tells, here after every step
    assert waits == {"megatron/core/optimizer/clip_grads.py": step["calls"]}
