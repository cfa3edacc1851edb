"""A run's directory by the command: what a second run, a return and a change meet there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from megatron_grow.checkpoint.layout import PENDING, TRACKER
from megatron_grow.checkpoint.lock import LOCK, held
from megatron_grow.checkpoint.root import saved_steps
from tests.corpus import write_corpus
from tests.distributed import run_ranks
from tests.train.command import command, launch, losses, rows, steps_saved
from tests.train.processes import at_step

FLAT = ["--stages", "[]", "--checkpoint.save_interval", "5", "--train.eval_iters", "0"]
"""A run that does not grow."""


@pytest.fixture(scope="module")
def whole(workplace: Path) -> Path:
    """Twenty steps, with a checkpoint at each fifth."""
    code, _, errors = launch(workplace, "whole", *FLAT)
    assert code == 0, errors
    assert not list((workplace / "whole").rglob(".lock*")), "no lock is left"
    return workplace / "whole"


@pytest.fixture
def copied(workplace: Path, whole: Path) -> Path:
    """A run of which everything may be changed."""
    target = workplace / "copied"
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(whole, target)


def everything(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def refused(workplace: Path, *options: str) -> str:
    """The one line of a command that is refused in ``copied`` and changes nothing there."""
    before = everything(workplace / "copied")
    code, _, errors = launch(workplace, "copied", *FLAT, *options)
    assert code == 2 and errors.count("\n") == 1, errors
    assert everything(workplace / "copied") == before
    return errors


def test_a_second_beginning(workplace: Path, whole: Path, copied: Path) -> None:
    """keep_last 2 and 10 steps: its checkpoints are older than those that are there by number."""
    short = ["--train.train_iters", "10", "--checkpoint.keep_last", "2"]
    assert "--run.overwrite true" in refused(workplace, *short)
    options = [*FLAT, *short, "--run.overwrite", "true"]
    code, output, errors = launch(workplace, "copied", *options)
    assert code == 0, errors
    assert output.count("set aside:") == 2
    assert steps_saved(workplace, "copied") == [5, 10]
    assert (copied / "checkpoints" / TRACKER).read_text() == "10"
    (checkpoints,) = (copied / "checkpoints").glob("set_aside_*")
    (rest,) = copied.glob("set_aside_*")
    assert everything(checkpoints).values() and saved_steps(checkpoints) == [5, 10, 15, 20]
    for name in ("metrics.jsonl", "config.yaml"):
        assert (rest / name).read_bytes() == (whole / name).read_bytes()
    # What was set aside is a run that can be gone on from.
    code, output, errors = launch(
        workplace, "from-aside", *FLAT, "--checkpoint.load", str(checkpoints)
    )
    assert code == 0 and "at step 20" in output, errors


def test_going_back(workplace: Path, whole: Path, copied: Path) -> None:
    """Later checkpoints and rows are set aside, and the same steps are made once more."""
    back = ["--checkpoint.load", str(copied / "checkpoints" / "iter_0000010")]
    code, output, errors = launch(workplace, "copied", *FLAT, *back, stop_at=12)
    assert code == 75, errors
    assert "the checkpoints after step 10" in output
    (aside,) = (copied / "checkpoints").glob("set_aside_*")
    assert saved_steps(aside) == [15, 20] and (aside / TRACKER).read_text() == "20"
    assert steps_saved(workplace, "copied") == [5, 10, 12]
    dropped = [json.loads(line) for line in (copied / "metrics.jsonl.dropped").open()]
    assert [row["step"] for row in dropped] == list(range(11, 21))
    # The same command goes on with what the run has done since.
    code, output, errors = launch(workplace, "copied", *FLAT, *back)
    assert code == 0 and "resumed" in output and "at step 12" in output, errors
    assert losses(workplace, "copied") == losses(workplace, "whole")
    assert [row["step"] for row in rows(workplace, "copied")] == list(range(1, 21))


def test_a_save_that_was_killed_before_the_tracker_moved(workplace: Path, copied: Path) -> None:
    root = copied / "checkpoints"
    shutil.copy(root / TRACKER, root / PENDING)
    (root / TRACKER).write_text("15")
    os.utime(root / TRACKER, (1, 1))
    code, output, errors = launch(workplace, "copied", *FLAT, "--checkpoint.load", "auto")
    assert code == 0 and "at step 20" in output, errors
    assert "set aside" not in output
    assert (root / TRACKER).read_text() == "20" and not (root / PENDING).exists()


def test_from_elsewhere_and_requeued(workplace: Path, whole: Path) -> None:
    load = ["--checkpoint.load", str(whole / "checkpoints" / "iter_0000010")]
    assert launch(workplace, "branch", *FLAT, *load, stop_at=12)[0] == 75
    code, output, errors = launch(workplace, "branch", *FLAT, *load)
    assert code == 0 and "at step 12" in output, errors
    expected = {step: loss for step, loss in losses(workplace, "whole").items() if step > 10}
    assert losses(workplace, "branch") == expected


def test_a_finished_run_once_more(workplace: Path, copied: Path) -> None:
    before = everything(copied)
    code, output, errors = launch(workplace, "copied", *FLAT, "--checkpoint.load", "auto")
    assert code == 0 and "finished" in output, errors
    told = ("run.json", "config.yaml", "status.json")
    kept = {path: content for path, content in before.items() if path.name not in told}
    assert {path: everything(copied)[path] for path in kept} == kept


def test_what_is_not_resumed(workplace: Path, copied: Path) -> None:
    auto = ["--checkpoint.load", "auto"]
    for field, old, new in (
        ("run.seed", "7", "8"),
        ("data.split", "60,40,0", "50,50,0"),
        ("optimizer.optimizer", "adam", "sgd"),
    ):
        line = refused(workplace, *auto, f"--{field}", new)
        assert f"{field}={old} (now {new})" in line
        assert f"--checkpoint.allow_changes '[{field}]'" in line
    changes = ["--run.seed", "8", "--optimizer.lr", "1e-3", "--optimizer.adam_beta2", "0.9"]
    allowed = ["--checkpoint.allow_changes", "[run.seed]", "--train.train_iters", "30"]
    code, output, errors = launch(workplace, "copied", *FLAT, *auto, *changes, *allowed)
    assert code == 0, errors
    for text in ("run.seed 7 -> 8", "optimizer.lr 0.003 -> 0.001", "train.train_iters 20 -> 30"):
        assert text in output
    # The decay of a WSD run has brought its rate to nothing.
    assert "the learning rate rises from 0.00e+00" in output and "step 15" in output


def test_a_corpus_that_was_made_anew(workplace: Path, tmp_path: Path) -> None:
    """Under its old name, which is all that the run file has of it."""
    prefix = write_corpus(tmp_path)
    options = [*FLAT, "--data.train_data_path", f"[{prefix}]", "--checkpoint.load", "auto"]
    assert launch(workplace, "anew", *options, "--train.train_iters", "2")[0] == 0
    write_corpus(tmp_path, ("argparse", "ast", "socket"))
    code, _, errors = launch(workplace, "anew", *options)
    assert code == 2 and errors.count("\n") == 1
    assert prefix in errors and "made anew" in errors
    allowed = ["--checkpoint.allow_changes", "[data.train_data_path]"]
    code, output, errors = launch(workplace, "anew", *options, *allowed)
    assert code == 0 and "made anew" in output, errors


def test_a_damaged_newest(workplace: Path, copied: Path) -> None:
    newest, older = (copied / "checkpoints" / f"iter_{step:07d}" for step in (20, 15))
    shard = newest / "__1_0.distcp"
    shutil.copy(older / shard.name, shard)
    advice = f"the newest whole one is step 15: --checkpoint.load {older}"
    line = refused(workplace, "--checkpoint.load", "auto")
    assert str(shard) in line and "another checkpoint" in line and advice in line
    shard.unlink()
    line = refused(workplace, "--checkpoint.load", "auto")
    assert str(shard) in line and "missing" in line and advice in line


def test_damaged_metrics_stop_before_anything_is_moved(workplace: Path, copied: Path) -> None:
    (copied / "metrics.jsonl").write_text("{\n{}\n")
    assert "metrics.jsonl:1" in refused(workplace, "--checkpoint.load", "auto")


def test_failed_starts_erase_nothing(workplace: Path, copied: Path) -> None:
    """Rows of a run that was killed before its first checkpoint, and of the next one."""
    shutil.rmtree(copied / "checkpoints")
    texts = [f'{{"step": {step}}}\n' for step in (1, 2)]
    for text in texts:
        (copied / "metrics.jsonl").write_text(text)
        options = ["--checkpoint.load", "auto", "--train.train_iters", "1", *FLAT]
        assert launch(workplace, "copied", *options)[0] == 0
        shutil.rmtree(copied / "checkpoints")
    kept = [copied / f"metrics.jsonl.previous{suffix}" for suffix in ("", ".2")]
    assert [path.read_text() for path in kept] == texts


def test_a_second_job(workplace: Path, copied: Path) -> None:
    for directory in (copied, copied / "checkpoints"):
        with held(directory):
            line = refused(workplace, "--checkpoint.load", "auto")
        assert f"process {os.getpid()} on" in line and f"{directory} is being written" in line


def taken_over(argv: list[str], output: Path) -> tuple[int, str, str]:
    """In step 4 another process is found to hold the directory; each step looks."""
    from megatron_grow.train import directory_guard

    def take() -> None:
        [lock] = output.glob(f"{LOCK}*")
        lock.write_text(json.dumps({**json.loads(lock.read_text()), "token": "another's"}))

    directory_guard.BEAT_SECONDS = 0.0
    if os.environ["RANK"] == "0":
        at_step(4, take)
    return command(argv)


def test_a_run_whose_directory_is_taken_over_ends(workplace: Path) -> None:
    """Before it writes another row; the other run's lock and status stay."""
    output = workplace / "taken"
    argv = ["--config", str(workplace / "run.yaml"), "--run.output_dir", str(output), *FLAT]
    (code, _, errors), (other_code, _, _) = run_ranks(2, taken_over, argv, output)
    assert code == other_code == 2 and errors.count("\n") == 1
    assert f"the lock of {output}" in errors and "has taken it over" in errors
    assert [row["step"] for row in rows(workplace, "taken")] == [1, 2, 3]
    assert json.loads((output / "status.json").read_text())["status"] == "running"
    [lock] = output.glob(f"{LOCK}*")
    assert json.loads(lock.read_text())["token"] == "another's"


def apart(directory: Path, argv: list[str]) -> tuple[int, str, str]:
    """Each rank with a file system of its own, as far as relative paths go."""
    place = directory / os.environ["RANK"]
    place.mkdir(exist_ok=True)
    os.chdir(place)
    return command(argv)


def test_a_directory_that_is_not_shared(workplace: Path, tmp_path: Path) -> None:
    argv = ["--config", str(workplace / "run.yaml"), "--run.output_dir", "out", *FLAT]
    results = run_ranks(2, apart, tmp_path, argv)
    assert [code for code, _, _ in results] == [2, 2]
    line = results[0][2]
    assert "checkpoint.save=out/checkpoints" in line and "ranks 1 on" in line
    assert line.count("\n") == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*")), "nothing is left behind"


def test_ranks_with_different_run_files(workplace: Path, tmp_path: Path) -> None:
    results = run_ranks(2, differing, str(workplace / "run.yaml"), str(tmp_path / "run"))
    assert [code for code, _, _ in results] == [2, 2]
    assert "rank 1 on" in results[0][2] and "another run file" in results[0][2]
    assert not (tmp_path / "run").exists()


def differing(run: str, output: str) -> tuple[int, str, str]:
    rate = f"1e-{3 + int(os.environ['RANK'])}"
    return command(["--config", run, "--run.output_dir", output, "--optimizer.lr", rate])
