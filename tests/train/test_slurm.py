"""The job script of the 64-GPU example, with SLURM's programs stood in for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples/gpt2_7b/slurm.sh"
STATUS = "runs/gpt2_7b/status.json"


@pytest.mark.parametrize(
    ("status", "code", "requeued"),
    [("done", 0, False), ("stopped", 1, True), ("diverged", 1, False), (None, 1, False)],
)
def test_only_a_run_that_stopped_as_asked_is_queued_again(
    status: str | None, code: int, requeued: bool, tmp_path: Path
) -> None:
    """``None``: it ended before it could say anything; what an earlier one said does not count."""
    programs = tmp_path / "bin"
    programs.mkdir()
    says = f"""echo '{{"status": "{status}"}}' > {STATUS}""" if status else ":"
    scripts = {
        "srun": f'echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT $*" > command; {says}; exit {code}',
        "scontrol": 'echo "$*" >> scontrol; echo node1',
    }
    for name, body in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "runs/gpt2_7b").mkdir(parents=True)
    (tmp_path / STATUS).write_text('{"status": "stopped"}')
    job = {"SLURM_JOB_NODELIST": "node[1-8]", "SLURM_JOB_NUM_NODES": "8", "SLURM_JOB_ID": "17"}
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(["bash", SCRIPT], cwd=tmp_path, env={"PATH": path, **job}, timeout=60)
    assert done.returncode == code
    assert ("requeue 17" in (tmp_path / "scontrol").read_text()) == requeued
    seconds, command = (tmp_path / "command").read_text().split(" ", 1)
    assert 30 < int(seconds) < 300  # SLURM kills everything 300 seconds after its warning
    assert command.startswith("torchrun --nnodes 8 ")
