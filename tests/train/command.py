"""``pretrain_progressive.py`` on ranks forked from a warm process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from functools import partial
from pathlib import Path

from tests.distributed import run_ranks
from tests.train.processes import at_step


def command(argv: list[str], stop_at: int | None = None) -> tuple[int, str, str]:
    """Run the command on this rank; exit code, standard output, standard error.

    With ``stop_at``, rank 1 receives SIGTERM during that step.
    """
    from megatron_grow.train.entry import main

    if stop_at is not None and os.environ["RANK"] == "1":
        at_step(stop_at, partial(os.kill, os.getpid(), signal.SIGTERM))
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(argv)
    return code, output.getvalue(), errors.getvalue()


def launch(
    workplace: Path, name: str, *options: str, world_size: int = 2, stop_at: int | None = None
) -> tuple[int, str, str]:
    """The command on real ranks; what rank 0 gives."""
    argv = ["--config", str(workplace / "run.yaml"), "--run.output_dir", str(workplace / name)]
    results = run_ranks(world_size, command, [*argv, *options], stop_at)
    assert len({code for code, _, _ in results}) == 1, results
    for _, output, errors in results[1:]:
        assert output == errors == "", f"only rank 0 speaks: {output}{errors}"
    return results[0]


def rows(workplace: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (workplace / name / "metrics.jsonl").open()]


def losses(workplace: Path, name: str) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows(workplace, name) if "loss" in row}


def steps_saved(workplace: Path, name: str) -> list[int]:
    return sorted(int(p.name[5:]) for p in (workplace / name / "checkpoints").glob("iter_*"))
