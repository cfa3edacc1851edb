"""Collectives among devices that are not there: counted, and done at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg  # registers the backend "fake"
from torch._C._distributed_c10d import FakeWork
from torch.distributed import distributed_c10d


class Collective(NamedTuple):
    """One kind of message over one kind of group."""

    kind: str
    """As torch calls the operator: allreduce_, send, ..."""
    group: str
    """As megatron-core describes it, or ``world``."""
    size: int
    """Ranks in the group."""
    device: str
    """``cuda`` over NCCL, ``cpu`` over gloo."""


class Collectives:
    """How many of each, and their bytes."""

    def __init__(self) -> None:
        """None so far."""
        self.count: Counter[Collective] = Counter()
        self.bytes: Counter[Collective] = Counter()
        """Of what goes in or what comes out, whichever is more."""

    def run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Count an operator of torch's ``c10d``; one on the device is then done, without values.

        What is on the CPU travels in reality.
        """
        group = next(
            dist.ProcessGroup.unbox(arg) for arg in args if isinstance(arg, torch.ScriptObject)
        )
        given = [[*tensors_in(arg)] for arg in args]
        devices = {tensor.device.type for tensors in given for tensor in tensors}
        if len(devices) > 1:
            raise RuntimeError(f"{func}: tensors on {' and '.join(sorted(devices))}")
        (device,) = devices
        if func is torch.ops.c10d.barrier.default and _is_world(group):
            args, device = (torch.empty(1), *args[1:]), "cpu"  # ranks do wait for each other
        kind = Collective(func._opname, _name(group), group.size(), device)
        self.count[kind] += 1
        self.bytes[kind] += max(sum(t.nbytes for t in tensors) for tensors in given)
        if device == "cpu":
            return func(*args, **kwargs)
        group._get_backend(torch.device(device))  # raises where NCCL would
        work = FakeWork().boxed()
        return (args[0], work) if len(func._schema.returns) > 1 else work


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """A tensor, or those in sequences of any depth; of anything else, none."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def _is_world(group: dist.ProcessGroup) -> bool:
    world = dist.GroupMember.WORLD
    return world is not None and group.group_name == world.group_name


def _name(group: dist.ProcessGroup) -> str:
    if _is_world(group):
        return "world"
    return group.group_desc.removesuffix("_GROUP").lower()


def replace_nccl() -> None:
    """Make groups that are asked for over NCCL out of torch's ``fake`` backend."""

    def without_nccl(make: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> Any:
            args = tuple(_without_nccl(arg) for arg in args)
            kwargs = {name: _without_nccl(arg) for name, arg in kwargs.items()}
            return make(*args, **kwargs)

        return made

    for name in ("init_process_group", "new_group"):
        made = without_nccl(getattr(dist, name))
        setattr(dist, name, made)
        setattr(distributed_c10d, name, made)


def _without_nccl(arg: Any) -> Any:
    if arg == "nccl":
        return "cuda:fake"  # the CPU has no backend there, as under NCCL
    return arg.replace("nccl", "fake") if isinstance(arg, str) else arg
