"""``checkpoint.async_save``: training goes on while a checkpoint is written, and whatever happens
then is as safe as without it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_grow.checkpoint.layout import step_dir
from megatron_grow.checkpoint.root import latest
from tests.distributed import run_ranks
from tests.train.command import launch, losses, steps_saved
from tests.train.processes import start_ranks

ASYNC = ["--checkpoint.async_save", "true"]
RANKS = 2


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "training waits for the save"
        time.sleep(0.01)


def step_of(writer: Any) -> int:
    """That of the checkpoint whose shards are written."""
    return int(Path(writer.path).name.split(".")[1].removeprefix("iter_"))


def watch_steps() -> list[int]:
    """The steps that this process has begun, as they come."""
    from megatron_grow.live.stage import LiveStage

    begun, original = [0], LiveStage.forward_backward

    def forward_backward(self: LiveStage, step: int, batches: Any) -> Any:
        begun.append(step)
        return original(self, step, batches)

    LiveStage.forward_backward = forward_backward  # type: ignore[method-assign]
    return begun


def killed_in_the_third_save(rank: int, argv: list[str]) -> None:
    """Rank 0 is killed when shards are written and training is two steps ahead."""
    from megatron_grow.checkpoint.torch_dist.shards import ShardWriter
    from megatron_grow.train import trainer

    begun, write_data, grow = watch_steps(), ShardWriter.write_data, trainer.grow

    def write_slowly(self: ShardWriter, *args: Any, **more: Any) -> Any:
        saved = step_of(self)
        results = write_data(self, *args, **more)
        if saved == 10:
            time.sleep(0.5)  # the growth waits
        else:
            wait_for(lambda: begun[-1] >= saved + 2)
        if saved == 15 and rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return results

    def growing(live: Any, stage: Any, config: Any, *args: Any, **more: Any) -> Any:
        assert latest(config.checkpoint_dir) == step_dir(config.checkpoint_dir, 10)
        return grow(live, stage, config, *args, **more)

    ShardWriter.write_data = write_slowly  # type: ignore[method-assign]
    trainer.grow = growing


def test_a_run_is_the_same_and_may_be_killed(workplace: Path, tmp_path: Path) -> None:
    assert launch(workplace, "waits", world_size=RANKS)[0] == 0
    argv = ["--config", str(workplace / "run.yaml"), *ASYNC]
    run = ["--run.output_dir", str(workplace / "goes_on")]
    outcomes = start_ranks(tmp_path, [*argv, *run], killed_in_the_third_save, RANKS)
    assert outcomes[0].code == -signal.SIGKILL, outcomes
    assert steps_saved(workplace, "goes_on") == [5, 10]
    assert latest(workplace / "goes_on/checkpoints").name == "iter_0000010"
    assert max(losses(workplace, "goes_on")) >= 16

    code, output, errors = launch(
        workplace, "goes_on", *ASYNC, "--checkpoint.load", "auto", world_size=RANKS
    )
    assert code == 0, errors
    saved = [line.split()[-1] for line in output.splitlines() if "| saved " in line]
    assert [Path(path).name for path in saved] == ["iter_0000015", "iter_0000020"]
    assert losses(workplace, "goes_on") == losses(workplace, "waits")
    for step in (5, 10, 15, 20):
        files = list(step_dir(workplace / "waits/checkpoints", step).glob("*.distcp"))
        assert len(files) == RANKS
        for file in files:
            same = step_dir(workplace / "goes_on/checkpoints", step) / file.name
            assert same.read_bytes() == file.read_bytes(), same


def in_trouble(argv: list[str], trouble: str) -> tuple[int, str, str]:
    """Run the command on this rank; something happens in step 6, while that of 5 is written."""
    from megatron_grow.checkpoint.torch_dist.shards import ShardWriter
    from megatron_grow.live.stage import LiveStage
    from megatron_grow.train.entry import main
    from megatron_grow.train.saves import Saves

    begun, on_rank_1 = watch_steps(), os.environ["RANK"] == "1"
    write_data, enter, norm = ShardWriter.write_data, Saves.__enter__, LiveStage.gradient_norm
    saves: list[Saves] = []

    def entering(self: Saves) -> Saves:
        saves.append(self)
        return enter(self)

    def writing(self: ShardWriter, *args: Any, **more: Any) -> Any:
        if step_of(self) == 5:
            wait_for(lambda: begun[-1] >= 6)
            if trouble == "the disk is full" and on_rank_1:
                raise OSError(28, "No space left on device", str(self.path))
            time.sleep(0.5)
        return write_data(self, *args, **more)

    def gradient_norm(self: LiveStage) -> float:
        if begun[-1] == 6:
            if trouble == "the disk is full":
                wait_for(lambda: saves[0].done)
            if trouble == "a request to stop" and on_rank_1:
                os.kill(os.getpid(), signal.SIGTERM)
            if trouble == "numbers that are not finite":
                return math.nan
        return norm(self)

    Saves.__enter__ = entering  # type: ignore[method-assign]
    ShardWriter.write_data = writing  # type: ignore[method-assign]
    LiveStage.gradient_norm = gradient_norm  # type: ignore[method-assign]
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(argv)
    return code, output.getvalue(), errors.getvalue()


@pytest.mark.parametrize(
    ("trouble", "code", "saved", "done", "said"),
    [
        ("the disk is full", 2, [], 5, ["step 5", "No space left", "(rank 1)", "there is none"]),
        ("numbers that are not finite", 3, [5], 5, ["go on from step 5", "iter_0000005"]),
        ("a request to stop", 75, [5, 6], 6, []),
    ],
)
def test_what_happens_meanwhile(
    workplace: Path, trouble: str, code: int, saved: list[int], done: int, said: list[str]
) -> None:
    name = trouble.replace(" ", "_")
    run = ["--run.output_dir", str(workplace / name), "--stages", "[]", *ASYNC]
    found = run_ranks(2, in_trouble, ["--config", str(workplace / "run.yaml"), *run], trouble)
    assert [each[0] for each in found] == [code, code], found
    assert steps_saved(workplace, name) == saved
    assert not list((workplace / name / "checkpoints").glob(".iter_*")), "nothing is left behind"
    assert max(losses(workplace, name)) == done, "it ends within a step"
    assert found[0][2].count("\n") == bool(said) and found[1][2] == ""
    for part in said:
        assert part in found[0][2]
    status = json.loads((workplace / name / "status.json").read_text())
    assert status["exit_code"] == code
