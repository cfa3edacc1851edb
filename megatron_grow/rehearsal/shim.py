"""What torch's own C++ asks of a CUDA device, answered where there is none.

Autograd asks the type of a tensor's device for a guard, which knows the device that is current, and
ATen's hooks whether there is CUDA at all. A CPU build of torch registers neither. It has a guard
for fake tensors, though, which it puts in the place of one that knows no device, and what it asks
the hooks is yes or no. So nothing has to be compiled: a guard whose methods all answer 0 is put
there for a moment, and the hooks get methods that all answer 1. A table of methods is laid out as
by all compilers for Linux (the Itanium C++ ABI).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_grow.inputs.errors import UserError

DEVICES = 8
"""That torch's guard for fake tensors knows of: a rehearsed host has so many."""
_CUDA = 1  # c10::DeviceType
_DEVICE_TYPES = 20
_METHODS = 256  # either class has fewer
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
_HOOKS = "_ZN2at6detail12getCUDAHooksEv"  # at::detail::getCUDAHooks
_Pointer = ctypes.c_void_p


def check() -> None:
    """Raise :class:`UserError` where torch has not what :func:`install` needs."""
    try:
        if torch.version.cuda or torch.version.hip:
            raise ValueError("it is built for GPUs, and has a guard of its own")
        _find()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"a rehearsal cannot make torch {torch.__version__} believe in CUDA devices ({error}); "
            "install the CPU build of torch 2.13 for Linux"
        ) from None


def install() -> None:
    """Let C++ find CUDA devices from now on, :data:`DEVICES` of them."""
    guards, hooks, replace_guard = _find()
    no = ctypes.CFUNCTYPE(ctypes.c_long)(lambda: 0)
    knows_none = _Pointer(_methods(no))
    guards[_CUDA] = ctypes.addressof(knows_none)
    replace_guard()
    hooks[0] = _methods(ctypes.pythonapi.Py_IsInitialized)  # 1, and asks for no lock


def _find() -> tuple[ctypes.Array, Any, Callable[[], None]]:
    """Guards by type of device; the hooks, an object, which begins with its methods; and what
    puts torch's guard for fake tensors in the place of CUDA's."""
    libraries = Path(torch.__file__).parent / "lib"
    c10, cpu = (ctypes.CDLL(str(libraries / f"lib{name}.so")) for name in ("c10", "torch_cpu"))
    hooks = cpu[_HOOKS]
    hooks.restype = ctypes.POINTER(_Pointer)
    guards = (_Pointer * _DEVICE_TYPES).in_dll(c10, _GUARDS)
    return guards, hooks(), torch._C._ensureCUDADeviceGuardSet


def _methods(answer: Any) -> int:
    """The address of a table of methods that are all ``answer``; it is never freed."""
    table = (_Pointer * _METHODS)(*[ctypes.cast(answer, _Pointer).value] * _METHODS)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(table))
    return ctypes.addressof(table)


def current() -> int:
    """Number of the device that is current in this thread."""
    return torch._C._accelerator_getDeviceIndex()


def select(device: int) -> None:
    """Make another one current in this thread."""
    torch._C._accelerator_setDeviceIndex(device)
