"""The command starts fast, on a machine without GPU and Megatron's accelerations."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource, sys
import megatron_grow.convert.command
import torch
from megatron_grow.checkpoint.formats import FORMATS
FORMATS.make({"format": "huggingface"}, "--format")  # looks up the types in the class
heavy = {"megatron.core", "transformer_engine", "apex", "transformers", "triton"} & set(sys.modules)
used = resource.getrusage(resource.RUSAGE_SELF)
print(sorted(heavy), torch.cuda.is_initialized(), used.ru_utime + used.ru_stime)
"""


def test_what_is_imported() -> None:
    seconds = []
    for _ in range(3):  # on a busy machine even the time of one core varies by half
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True
        )
        heavy, initialised, used = done.stdout.rsplit(" ", 2)
        assert heavy == "[]"
        assert initialised == "False"
        seconds.append(float(used))
        if seconds[-1] < 5:
            break
    assert min(seconds) < 5
