"""Builds and loads ``fake_cuda.cpp``: what autograd asks of a CUDA device."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch

from megatron_grow.inputs.errors import UserError

_SOURCE = Path(__file__).with_name("fake_cuda.cpp")
_COMPILERS = ("c++", "g++", "clang++")


def build() -> Path:
    """The shared library, compiled in a few seconds where it is not there yet.

    Raises:
        UserError: no compiler, or one that refuses.
    """
    source = _SOURCE.read_text()
    root = Path(torch.__file__).parent
    key = hashlib.sha256(f"{torch.__version__} {root}\n{source}".encode()).hexdigest()[:16]
    path = _cache() / f"fake_cuda_{key}.so"
    if path.exists():
        return path
    compiler = os.environ.get("CXX") or next(filter(shutil.which, _COMPILERS), None)
    if compiler is None:
        raise UserError(
            "a rehearsal compiles a small file against torch, and there is no C++ compiler: "
            "install g++, or name one in CXX"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(f".{os.getpid()}")
    # As torch.utils.cpp_extension would, without what its import drags in.
    flags = ["-std=c++20", "-O0", "-w", "-shared", "-fPIC", f"-I{root / 'include'}"]
    libraries = [f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    command = [compiler, *flags, str(_SOURCE), "-o", str(made), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise UserError(f"{compiler} does not compile {_SOURCE}: {said.strip()}")
    made.replace(path)  # whole, whoever else builds it
    return path


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "megatron_grow"


class Shim:
    """The library, loaded into this process: there is a CUDA device from now on."""

    def __init__(self, path: Path, devices: int) -> None:
        """``devices`` are there."""
        self._library = ctypes.CDLL(str(path))
        if not self._library.install(devices):
            raise RuntimeError("torch does not take the simulated CUDA device")

    def current(self) -> int:
        """Number of the device that is current in this thread."""
        return self._library.get_device()

    def select(self, device: int) -> None:
        """Make another one current in this thread."""
        self._library.set_device(device)
