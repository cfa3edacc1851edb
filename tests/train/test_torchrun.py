"""What torchrun's agent does for a run: its report of a failure, and its restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.train.agents import in_first_attempt, start_agent
from tests.train.command import launch, losses
from tests.train.processes import at_step

ROOT = Path(__file__).resolve().parents[2]


def _is_signalled(number: signal.Signals, rank: int, argv: list[str]) -> None:
    if rank == 1 and in_first_attempt():
        at_step(8, partial(os.kill, os.getpid(), number))


def _torchrun(
    number: signal.Signals, options: list[str], argv: list[str], output: Path
) -> tuple[int | None, str]:
    """Exit code and output of ``torchrun`` with two workers, one of which gets a signal."""
    accident = partial(_is_signalled, number)
    agent = start_agent(["--nproc-per-node=2", *options], argv, accident, output)
    agent.join(timeout=300)
    agent.kill()
    agent.join()
    return agent.exitcode, output.read_text()


def test_the_report_of_a_mistake_ends_with_it(workplace: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("pretrain_progressive.py", "--config", str(workplace / "run.yaml")),
            "--train.seq_length=0",
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "train.seq_length=0" in line]
    assert said[0].startswith("error: "), "at once, before the agent's report"
    *_, last, border = done.stderr.splitlines()
    assert set(border) == {"="} and last.endswith(said[0]), done.stderr


def test_the_report_of_a_run_that_stopped_says_so(workplace: Path, tmp_path: Path) -> None:
    argv = ["--config", str(workplace / "run.yaml"), "--run.output_dir", str(workplace / "asked")]
    code, said = _torchrun(signal.SIGTERM, ["--standalone"], argv, tmp_path / "said")
    assert code == 1, said
    *_, last, border = said.splitlines()
    assert set(border) == {"="} and "stopped as asked; " in last, said


def test_a_restarted_run_goes_on_as_if_nothing_had_been(workplace: Path, tmp_path: Path) -> None:
    assert launch(workplace, "undisturbed", "--train.train_iters", "12")[0] == 0
    options = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--max-restarts=1"]
    argv = [
        *("--config", str(workplace / "run.yaml"), "--train.train_iters", "12"),
        *("--run.output_dir", str(workplace / "killed"), "--checkpoint.load", "auto"),
    ]
    code, said = _torchrun(signal.SIGKILL, options, argv, tmp_path / "said")
    assert code == 0, said
    assert "at step 5" in said, "it resumed"
    assert losses(workplace, "killed") == losses(workplace, "undisturbed")
