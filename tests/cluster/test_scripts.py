"""The job scripts of ``examples/cluster``, with SLURM's programs stood in for."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from megatron_grow.config.run import parse_run
from megatron_grow.parallel.launch import missing

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples/cluster"
SCRIPTS = [EXAMPLES / name for name in ("torchrun.sh", "srun.sh")]
JOB = {
    "SLURM_JOB_NODELIST": "node[1-8]",
    "SLURM_JOB_NUM_NODES": "8",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_CPUS_PER_TASK": "64",
    "SLURM_JOB_ID": "1234567",
}
WARNING = 300
"""Seconds from SLURM's warning to the end of a job."""


def submit(
    script: Path, place: Path, *argv: str, code: int = 0, status: str | None = None, **job: str
) -> subprocess.CompletedProcess[str]:
    """Run a job script in ``place``; ``srun`` there notes its environment and command line, leaves
    ``status`` in the run's directory and ends with ``code``."""
    says = f"""echo '{{"status": "{status}"}}' > out/status.json""" if status else ":"
    programs = {
        "srun": f'env > environment; printf "%s\\n" "$@" > command; {says}; exit {code}',
        # More hosts than a pipe holds: whoever reads the first alone would end it by SIGPIPE.
        "scontrol": 'echo "$*" >> scontrol; seq -f node%.0f 20000',
    }
    (place / "bin").mkdir()
    for name, body in programs.items():
        (place / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (place / "bin" / name).chmod(0o755)
    (place / "scontrol").touch()
    (place / "out").mkdir()
    (place / "out/status.json").write_text('{"status": "stopped"}')  # of an earlier start
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", script, "run.yaml", "out", *argv],
        cwd=place,
        env={"PATH": path, **JOB, **job},
        capture_output=True,
        text=True,
        timeout=60,
    )


def seen(place: Path) -> tuple[dict[str, str], list[str]]:
    """Environment and command line of ``srun``."""
    lines = (place / "environment").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    return environment, (place / "command").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
@pytest.mark.parametrize(
    ("status", "code", "requeued"),
    [("done", 0, False), ("stopped", 1, True), ("diverged", 1, False), (None, 1, False)],
)
def test_only_a_run_that_stopped_as_asked_is_queued_again(
    script: Path, status: str | None, code: int, requeued: bool, tmp_path: Path
) -> None:
    """``None``: it ended before it could say anything; what an earlier one said does not count."""
    done = submit(script, tmp_path, code=code, status=status)
    assert done.returncode == code, done.stderr
    assert ("requeue 1234567" in (tmp_path / "scontrol").read_text()) == requeued


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_what_both_scripts_set(script: Path, tmp_path: Path) -> None:
    submit(script, tmp_path, "--train.train_iters=5", INTERFACE="ib0")
    environment, command = seen(tmp_path)
    assert environment["NCCL_SOCKET_IFNAME"] == environment["GLOO_SOCKET_IFNAME"] == "ib0"
    assert environment["SRUN_CPUS_PER_TASK"] == "64"
    assert command[0] == "--kill-on-bad-exit=1", "else hosts that are well wait for one that is not"
    own = command[command.index("pretrain_progressive.py") + 1 :]
    assert own == [
        *("--config", "run.yaml", "--run.output_dir", "out", "--checkpoint.load", "auto"),
        "--train.train_iters=5",
    ]
    options = re.findall(r"^#SBATCH --(\S+?)(?:=(\S+))?$", script.read_text(), re.MULTILINE)
    assert {"nodes": "8", "gpus-per-node": "8", "requeue": "", "open-mode": "append"}.items() <= (
        dict(options).items()
    )
    assert dict(options)["signal"] == f"TERM@{WARNING}", "not to the script alone, as B:TERM is"


def test_torchrun_has_time_to_save_and_to_start_again(tmp_path: Path) -> None:
    submit(SCRIPTS[0], tmp_path)
    environment, command = seen(tmp_path)
    assert 30 < int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < WARNING
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert command[1 : command.index("pretrain_progressive.py")] == [
        *("torchrun", "--nnodes", "8", "--nproc-per-node", "8", "--max-restarts", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "node1:19567", "--rdzv-id", "1234567"),
    ]


def test_tasks_of_srun_need_no_torchrun(tmp_path: Path) -> None:
    submit(SCRIPTS[1], tmp_path)
    environment, command = seen(tmp_path)
    assert command[1:3] == ["python", "pretrain_progressive.py"]
    task = {**environment, "SLURM_PROCID": "9", "SLURM_NTASKS": "64", "SLURM_LOCALID": "1"}
    found = missing(task)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("9", "64", "1")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("node1", "19567")


def test_the_job_of_kubeflow() -> None:
    job = yaml.safe_load((EXAMPLES / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec = job["spec"]
    first, others = (spec["pytorchReplicaSpecs"][name] for name in ("Master", "Worker"))
    assert first["replicas"] == 1 and first["template"] == others["template"]
    assert first["restartPolicy"] == others["restartPolicy"] == "OnFailure"
    pod = first["template"]["spec"]
    [container] = pod["containers"]
    assert container["name"] == "pytorch"
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert all(isinstance(value, str) for value in environment.values())
    stop = int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert 30 < stop < pod["terminationGracePeriodSeconds"]
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}
    assert spec["nprocPerNode"] == str(container["resources"]["limits"]["nvidia.com/gpu"])
    launcher, script, *options = container["command"]
    assert launcher == "torchrun" and (ROOT / script).is_file()
    run = parse_run(options)
    assert run.checkpoint.load == "auto"
    run = replace(run, model=replace(run.model, vocab_size=50257))
    assert run.resolve(int(spec["nprocPerNode"]) * (1 + others["replicas"]))
