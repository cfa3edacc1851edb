"""What torchrun's agent does for a run: its report of a failure, and its restarts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.train.command import launch, losses

ROOT = Path(__file__).resolve().parents[2]
KILLED_ONCE = """
import os, signal
from megatron_grow.parallel.failure import leave
from megatron_grow.train.entry import main
from megatron_grow.live.stage import LiveStage

original = LiveStage.forward_backward

def forward_backward(self, step, batches):
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], step) == ("1", "0", 8):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, step, batches)

LiveStage.forward_backward = forward_backward
leave(main())
"""


def torchrun(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *argv],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_report_of_a_mistake_ends_with_it(workplace: Path) -> None:
    done = torchrun(
        "--standalone",
        "pretrain_progressive.py",
        *("--config", str(workplace / "run.yaml"), "--train.seq_length", "0"),
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "train.seq_length=0" in line]
    assert said[0].startswith("error: "), "at once, before the agent's report"
    *_, last, border = done.stderr.splitlines()
    assert set(border) == {"="} and last.endswith(said[0]), done.stderr


def test_the_report_of_a_run_that_stopped_says_so(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text(KILLED_ONCE.replace("SIGKILL", "SIGTERM"))
    done = torchrun(
        *("--standalone", str(tmp_path / "stopped.py")),
        *("--config", str(workplace / "run.yaml"), "--run.output_dir", str(workplace / "asked")),
    )
    assert done.returncode == 1, done.stderr
    *_, last, border = done.stderr.splitlines()
    assert set(border) == {"="} and "stopped as asked; " in last, done.stderr


def test_a_restarted_run_goes_on_as_if_nothing_had_been(workplace: Path, tmp_path: Path) -> None:
    assert launch(workplace, "undisturbed", "--train.train_iters", "12")[0] == 0
    (tmp_path / "killed_once.py").write_text(KILLED_ONCE)
    done = torchrun(
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--max-restarts", "1"),
        str(tmp_path / "killed_once.py"),
        *("--config", str(workplace / "run.yaml"), "--train.train_iters", "12"),
        *("--run.output_dir", str(workplace / "killed"), "--checkpoint.load", "auto"),
    )
    assert done.returncode == 0, done.stderr
    assert "at step 5" in done.stdout, "it resumed"
    assert losses(workplace, "killed") == losses(workplace, "undisturbed")
