"""The command starts fast, on a machine without GPU and Megatron's accelerations."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource, sys
import megatron_grow.convert.command
import torch
heavy = {"megatron.core", "transformer_engine", "apex", "transformers", "triton"} & set(sys.modules)
used = resource.getrusage(resource.RUSAGE_SELF)
print(sorted(heavy), torch.cuda.is_initialized(), used.ru_utime + used.ru_stime)
"""


def test_what_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True
    )
    heavy, initialised, seconds = done.stdout.rsplit(" ", 2)
    assert heavy == "[]"
    assert initialised == "False"
    assert float(seconds) < 5  # of one core, whatever else keeps the machine busy
