"""Whether the GPU trains, grows, saves and resumes as a CPU does, by the command itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import megatron_grow
from megatron_grow.benchmark.gpu.cases import (
    CASES,
    RESUMED,
    STEPS,
    Case,
    write_corpora,
    write_run,
)
from megatron_grow.benchmark.gpu.runner import Row, Task, Workers
from megatron_grow.benchmark.gpu.shapes import Sizes
from megatron_grow.checkpoint.layout import step_dir
from megatron_grow.parallel.launch import ALONE
from megatron_grow.train.rows import FILE_NAME, read_rows

_ROUNDING = 1e-6
"""How far two losses of one function may be apart in fp32, of the loss: of a mean over 512 tokens
of sums of a few hundred terms."""
_SAVED = 15
_COMMAND = Path(megatron_grow.__file__).parents[1] / "pretrain_progressive.py"
_ONE_OF_MANY = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
_PLACES: dict[str, dict[str, str]] = {"cpu": {"CUDA_VISIBLE_DEVICES": ""}, "gpu": {}}


def tasks(sizes: Sizes) -> list[Task]:
    """All cases at once: each is small, and most of its time are imports."""
    return [Task("correctness", "against the CPU", 60.0, partial(measure, sizes.cases))]


def launch(argv: list[str], environment: Mapping[str, str], seconds: float) -> tuple[int, str]:
    """Run ``pretrain_progressive.py``; its exit code, and what it said.

    Nobody but ``environment`` tells it of a job.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in ALONE}
    done = subprocess.run(
        [sys.executable, str(_COMMAND), *argv],
        env=inherited | _ONE_OF_MANY | dict(environment),
        timeout=seconds,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def measure(names: tuple[str, ...], workers: Workers) -> Row:
    """Run each case on both, and some of them again from a checkpoint."""
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(2 * len(names) + 1) as pool:
        root = Path(directory)
        corpora = write_corpora(root)
        jobs: dict[tuple[str, str], Future[list[Row]]] = {}
        for number, name in enumerate(names):
            for where, environment in _PLACES.items():
                output = root / f"{where}{number}"
                file = write_run(CASES[name], output, corpora, on_gpu=where == "gpu")
                jobs[name, where] = pool.submit(_run, output, file, environment, workers)
        found: dict[str, Row] = {}
        for name in names:
            one, other = (_result(jobs[name, where]) for where in _PLACES)
            try:
                found[name] = compared(CASES[name], one, other)
            except Exception:
                found[name] = {"equal": False, "failed": {"gpu": traceback.format_exc()}}
        for again, name in RESUMED.items():
            if name in names:
                found[again] = _resumed(root, names.index(name), workers)
    return {"cases": found, "equal": all(case["equal"] for case in found.values())}


def _run(
    output: Path,
    file: Path,
    environment: dict[str, str],
    workers: Workers,
    options: Sequence[str] = (),
) -> list[Row]:
    """The rows of metrics.jsonl of a run."""
    argv = ["--config", str(file), *options]
    code, said = launch(argv, environment, workers.patience())
    if code:
        raise RuntimeError(f"exit code {code}: {said[-4000:]}")
    return [dict(row) for row in read_rows(output / FILE_NAME)]


def _result(job: Future[list[Row]]) -> list[Row] | str:
    try:
        return job.result()
    except Exception as error:
        return str(error)


def _resumed(root: Path, number: int, workers: Workers) -> Row:
    """Go back to a checkpoint on the GPU, and compare what follows with what followed before."""
    output = root / f"gpu{number}"
    try:
        before = steps([dict(row) for row in read_rows(output / FILE_NAME)])
        saved = step_dir(output / "checkpoints", _SAVED)
        back = ["--checkpoint.load", str(saved)]
        after = steps(_run(output, output.with_suffix(".yaml"), {}, workers, back))
    except Exception as error:
        return {"equal": False, "failed": {"gpu": str(error)}}
    differences = [
        abs(after[step][0] - before[step][0]) / before[step][0]
        for step in range(_SAVED + 1, STEPS + 1)
    ]
    same = before == after
    return {"equal": max(differences) <= _ROUNDING, "same_bits": same, "largest": max(differences)}


def steps(rows: list[Row]) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm of each step."""
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows if "grad_norm" in row}


def compared(case: Case, cpu: list[Row] | str, gpu: list[Row] | str) -> Row:
    """What holds of a case, from the rows of both or from why there are none."""
    if isinstance(cpu, str) or isinstance(gpu, str):
        failed = {"cpu": cpu, "gpu": gpu}
        return {"equal": False, "failed": {k: v for k, v in failed.items() if isinstance(v, str)}}
    reference, found = steps(cpu), steps(gpu)
    losses, norms = (
        [abs(found[step][i] / reference[step][i] - 1) for step in range(1, STEPS + 1)]
        for i in range(2)
    )
    (growth,) = (row for row in gpu if row.get("event") == "growth")
    before, after = growth["val_loss_before"], growth["val_loss_after"]
    row: Row = {
        "equal": max(*losses, *norms) <= case.tolerance,
        "tolerance": case.tolerance,
        "largest": max(losses),
        "largest_of_norms": max(norms),
        "by_step": [losses, norms],
        "losses": [found[step][0] for step in found],
        "growth": [before, after],
    }
    if case.preserves:
        row["kept"] = abs(after - before) / before
        row["equal"] = row["equal"] and row["kept"] <= _ROUNDING
    return row
