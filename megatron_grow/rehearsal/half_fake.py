"""Only what is on the device is fake: a dispatch mode in which tensors of the CPU stay real.

A tensor made on, or copied to, the device is one of torch's fake tensors: it has a shape, a type
and a device, and no memory. Operators on such tensors check these as the real ones do, so that a
mix of devices raises. Collectives, files and numpy see tensors of the CPU, and work.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from megatron_grow.rehearsal.collectives import Collectives, tensors_in
from megatron_grow.rehearsal.memory import Ledger
from megatron_grow.rehearsal.places import here

_DEVICE = torch.ops.prim.device.default
_ITEM = torch.ops.aten._local_scalar_dense.default
_TO_COPY = torch.ops.aten._to_copy.default
_ADD = torch.ops.aten.add.Tensor
_COPY_ = torch.ops.aten.copy_.default


class HalfFake(TorchDispatchMode):
    """Counts what happens on the device while it is entered."""

    def __init__(self) -> None:
        """Nothing has happened."""
        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.memory = Ledger()
        self.collectives = Collectives()
        self.host_waits: Counter[str] = Counter()
        """Times at which the host waited for the device, by line of code."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        if func is _DEVICE:  # more than half of all that is asked
            return args[0].fake_device
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            return self.collectives.run(func, args, kwargs)
        kwargs.pop("pin_memory", None)  # nothing is copied to the device, in the background or not
        to = kwargs.get("device")
        to = None if to is None else torch.device(to).type
        fakes = FakeTensor in types
        if not fakes and to != "cuda":
            return func(*args, **kwargs)
        if fakes and (func is _ITEM or _leaves_device(func, args, to)):
            if not _in_background(func, args, kwargs):
                self.wait()
            return _on_host(func, args, kwargs)
        if _comes_to_device(func, args) and not _in_background(func, args, kwargs):
            self.wait()
        if func is _TO_COPY and not fakes:
            dtype = kwargs.get("dtype") or args[0].dtype
            func, args = torch.ops.aten.empty.memory_format, (args[0].shape,)
            kwargs = {"dtype": dtype, "device": kwargs["device"]}
        out = self._view(func, args, kwargs) if func.is_view else self._run(func, args, kwargs)
        if func is _ADD and _sums_gradients():
            self.memory.replace(args[0], out)
        for made in tensors_in(out):
            if isinstance(made, FakeTensor) and made.device.type == "cuda":
                self.memory.see(made)
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """As torch does with fake tensors."""
        if not all(isinstance(x, FakeTensor) for x in tensors_in((args, [*kwargs.values()]))):
            args, kwargs = tree_map_only(torch.Tensor, self._as_fake, (args, kwargs))
        with self._fake:
            return func(*args, **kwargs)

    def _view(self, func: Any, args: Any, kwargs: Any) -> Any:
        """By the kernel for tensors without memory; as torch does in a tenth of the time.

        Models are cut out of buffers, and state out of shards: most operators of a run are views.
        """
        device = args[0].fake_device
        with in_kernel_invocation_manager(self._fake):
            out = func(*args, **kwargs)
        made = [FakeTensor(self._fake, cut, device) for cut in tensors_in(out)]
        return made if isinstance(out, (list, tuple)) else made[0]

    def wait(self) -> None:
        """The host waits for the device at this line."""
        self.host_waits[here()] += 1

    def _as_fake(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self._fake.from_tensor(tensor)


def _sums_gradients() -> bool:
    """Whether autograd itself adds a gradient to another one of the same tensor.

    It does so in place, but not under a dispatch mode. Its threads run no line of ours.
    """
    return torch._C._current_graph_task_id() != -1 and here() == "?"


def _leaves_device(func: Any, args: Any, to: str | None) -> bool:
    """Whether an operator copies from the device to the CPU."""
    if func is _TO_COPY:
        return to == "cpu" and args[0].device.type == "cuda"
    return func is _COPY_ and not isinstance(args[0], FakeTensor)


def _comes_to_device(func: Any, args: Any) -> bool:
    """Whether an operator, of which a tensor is on the device, copies from the CPU."""
    if func is _TO_COPY:
        return not isinstance(args[0], FakeTensor)
    return func is _COPY_ and not isinstance(args[1], FakeTensor)


def _in_background(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host goes on while a copy is made; torch takes it from, or to, pinned memory."""
    return bool(kwargs.get("non_blocking") or (func is _COPY_ and args[2:] and args[2]))


def _on_host(func: Any, args: Any, kwargs: Any) -> Any:
    """What the host gets to see: a number is 1, a tensor is zeros."""
    if func is _COPY_:
        return args[0].zero_()
    if func is _TO_COPY:
        return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
    dtype = args[0].dtype
    return True if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1
