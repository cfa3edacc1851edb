"""Functions that torch compiles when they are first called."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable)

_C_COMPILERS = ("cc", "gcc", "clang")


def compiled(function: Function) -> Function:
    """``function``, compiled for the very shapes that it is called with.

    They are the same throughout a stage; its micro-batches are alike.
    """
    return torch.compile(function, dynamic=False)  # type: ignore[return-value]


def forget() -> None:
    """Let go of what has been compiled: a stage of other shapes begins.

    Otherwise torch would take it for one function of many shapes, and at the eighth give up.
    """
    torch.compiler.reset()


def lacks(device: torch.device) -> str | None:
    """What compiling needs on ``device`` and this machine does not have; None if nothing."""
    if device.type != "cuda":
        return None  # a C++ compiler: asked for by hand, torch's own message will do
    if find_spec("triton") is None:
        return "Triton"
    compilers = (os.environ["CC"],) if "CC" in os.environ else _C_COMPILERS
    if not any(map(shutil.which, compilers)):
        return "a C compiler"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python.h"
    return None
