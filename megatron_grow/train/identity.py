"""Whose directory it is: ``run.json`` in a run's output_dir."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from megatron_grow.files.durable import write_whole
from megatron_grow.files.regular import read_regular
from megatron_grow.inputs.errors import UserError

FILE_NAME = "run.json"


@dataclass(frozen=True)
class Identity:
    """The run, and the job that began or resumed it last."""

    run_id: str
    jobs: list[str]
    """What the job is called, by SLURM and by torchrun."""

    @classmethod
    def of(cls, output_dir: Path) -> Identity | None:
        """What a directory says; None where it says nothing.

        Raises:
            UserError: damaged.
        """
        path = output_dir / FILE_NAME
        try:
            return cls(**json.loads(read_regular(path)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); delete it") from None

    def write(self, output_dir: Path) -> None:
        """Leave it in a directory."""
        write_whole(output_dir / FILE_NAME, [json.dumps(asdict(self)).encode()])


def jobs(environment: Mapping[str, str], *, repeated: bool = False) -> list[str]:
    """What this job is called.

    Args:
        environment: of a rank.
        repeated: only those names under which it has been started before: SLURM has requeued it,
            or torchrun's agent has started its workers again.
    """
    found = []
    if "SLURM_JOB_ID" in environment:
        name = f"SLURM job {environment['SLURM_JOB_ID']}"
        found.append((name, environment.get("SLURM_RESTART_COUNT", "0")))
    if "TORCHELASTIC_RUN_ID" in environment:
        agent = psutil.Process(os.getppid())
        name = f"torchrun {agent.pid} on {socket.gethostname()} since {agent.create_time():.0f}"
        found.append((name, environment.get("TORCHELASTIC_RESTART_COUNT", "0")))
    return [name for name, restarts in found if not repeated or int(restarts or 0) > 0]
