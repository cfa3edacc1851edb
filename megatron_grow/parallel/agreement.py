"""Ranks that fail together, stop together and report together."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
import torch.distributed as dist

from megatron_grow.inputs.errors import AgreedError, one_line

Result = TypeVar("Result")


def together(action: Callable[[], Result], group: dist.ProcessGroup | None = None) -> Result:
    """Run ``action`` on every rank; if any rank finds a user's mistake, all raise it.

    A file system that refuses counts as one (:func:`~megatron_grow.inputs.errors.one_line`).

    Args:
        action: what may go wrong.
        group: as :func:`gather`.

    Raises:
        AgreedError: that of the first rank which had one, with its name if it is not rank 0.
    """
    mistake, result = None, None
    try:
        result = action()
    except Exception as error:
        mistake = one_line(error)
        if mistake is None:
            raise
    for rank, (found, host) in enumerate(gather((mistake, socket.gethostname()), group)):
        if found is not None:
            raise AgreedError(f"rank {rank} on {host}: {found}" if rank else found)
    return result  # type: ignore[return-value]


def gather(value: Result, group: dist.ProcessGroup | None = None) -> list[Result]:
    """The ``value`` of every rank, in their order; a process without a job is the only one.

    Args:
        value: this rank's.
        group: of all ranks, over which they agree; a thread beside the training needs one of its
            own. None: that of the job.
    """
    if not dist.is_initialized():
        return [value]
    values: list[Result] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value, group)
    return values


def swapped(values: Sequence[Result]) -> list[Result]:
    """What each rank has for this one, in their order, where ``values[rank]`` is for ``rank``."""
    if not dist.is_initialized():
        return [*values]
    pickled = [pickle.dumps(value) for value in values]
    sizes = torch.tensor([len(data) for data in pickled])
    theirs = torch.empty_like(sizes)
    dist.all_to_all_single(theirs, sizes)
    outgoing = torch.frombuffer(bytearray().join(pickled), dtype=torch.uint8)
    incoming = torch.empty(int(theirs.sum()), dtype=torch.uint8)
    dist.all_to_all_single(incoming, outgoing, theirs.tolist(), sizes.tolist())
    return [pickle.loads(part.numpy()) for part in incoming.split(theirs.tolist())]


def place() -> tuple[int, int]:
    """This process's rank and how many there are; a process without a job is the only one."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def leads() -> bool:
    """Whether this process is rank 0, the one that speaks and writes for all."""
    return place()[0] == 0


def any_rank(*flags: bool) -> list[bool]:
    """For each of ``flags``, whether it is true on at least one rank; one reduction for all."""
    found = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return [bool(flag) for flag in found.tolist()]


def reduced(values: torch.Tensor, how: Literal["max", "sum"]) -> torch.Tensor:
    """``values``, written to, over all ranks entry by entry; on the CPU, as :func:`gather`."""
    if dist.is_initialized():
        dist.all_reduce(values, dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM)
    return values


def sum_over_ranks(value: float) -> float:
    """Sum of ``value`` over all ranks, in fp64 and over the CPU backend."""
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item()
