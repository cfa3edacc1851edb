"""What the launcher says of this process: torchrun, SLURM's srun, or nobody.

Free of torch: the run is checked against the number of ranks before torch is imported, and CUDA
reads its environment when it is asked for the first time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from megatron_grow.inputs.errors import UserError

ALONE = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
"""Of a process that is a job of one."""

_FIRST_PORT, _PORTS = 15000, 10000
"""Where rank 0 listens under plain ``srun``, by the number of the job."""


def complete_environment() -> None:
    """Fill in what the launcher left out; see :func:`missing`."""
    # One queue, so that communication starts in the order in which it was asked for and overlaps
    # with compute (megatron-core wants it under tensor parallelism).
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    os.environ.update(missing(os.environ))


def missing(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of torch's ``env://`` that ``environment`` lacks and that can be known.

    torchrun gives all of them. Under plain ``srun`` they follow from SLURM's, and a process that
    nobody launched is a job of one.
    """
    if "RANK" in environment:
        known = {"LOCAL_RANK": environment.get("SLURM_LOCALID", "")}
    elif "SLURM_PROCID" in environment:
        known = _of_slurm(environment)
    else:
        known = ALONE
    return {name: value for name, value in known.items() if value and name not in environment}


def check_address(environment: Mapping[str, str]) -> None:
    """Refuse a job whose ranks cannot find each other.

    Raises:
        UserError: a variable that is not set, or a port of 0.
    """
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise UserError(
                f"{name} is not set, and no variable of SLURM tells it; start the run with "
                "torchrun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR (the host of rank 0) "
                "and MASTER_PORT on every rank"
            )
    if environment["MASTER_PORT"] == "0" and environment["WORLD_SIZE"] != "1":
        raise UserError(
            "MASTER_PORT=0: nobody has named the port at which ranks wait for each other; give "
            "torchrun --standalone on one host, or the number of a free port as --master-port"
        )


def agent_holds_store() -> bool:
    """Whether the job's store is torchrun's, which goes on from one attempt to the next.

    Else the process of rank 0 holds it, anew in each attempt. Where torchrun has agents on several
    hosts these need not count the same attempts, so there ``--max-restarts`` needs
    ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``.
    """
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _of_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    ranks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    if ranks == "1":
        return ALONE
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": ranks,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", ""),
        "MASTER_ADDR": first_host(hosts),
        "MASTER_PORT": str(_FIRST_PORT + int(environment.get("SLURM_JOB_ID", "0")) % _PORTS),
    }


def first_host(nodes: str) -> str:
    """The first host of SLURM's compressed list: ``gpu-07`` of ``gpu-[07-09,12],login1``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None, "an empty list matches"
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group())


def own_gpu(environment: Mapping[str, str], gpus: int) -> int:
    """Which of the ``gpus`` that this process sees is its own.

    Raises:
        UserError: nothing tells, or there are more processes on this host than GPUs.
    """
    if gpus == 1:  # a launcher that shows each process its own GPU alone
        return 0
    local_rank = environment.get("LOCAL_RANK") or (
        "0" if environment.get("WORLD_SIZE", "1") == "1" else ""
    )
    if not local_rank.isdigit():
        raise UserError(
            f"LOCAL_RANK is not set, and this process sees {gpus} GPUs: set it on every rank to "
            "the rank's number on its host, from 0, or start the run with torchrun"
        )
    if int(local_rank) >= gpus:
        raise UserError(
            f"LOCAL_RANK={local_rank}, but this host has {gpus} GPUs: start one process for each"
        )
    return int(local_rank)
