"""Conversions of a checkpoint against ``cp`` of the same bytes, on the same disk."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from megatron_grow.benchmark.report import Report
from megatron_grow.config.model import ModelConfig
from megatron_grow.convert.synthetic import SyntheticReader, write

_TOOL = Path(__file__).resolve().parents[2] / "tools" / "convert_checkpoint.py"
_TOLD = re.compile(r"([\d.]+) GB in ([\d.]+) s .*verified in ([\d.]+) s")


@dataclass(frozen=True)
class Turn:
    """One conversion, between two copies."""

    gigabytes: float
    """Written."""
    seconds: float
    verify_seconds: float
    peak: int
    """Resident bytes."""


def measure(model: ModelConfig, precision: str, directory: Path) -> Report:
    """Make a checkpoint, then copy and convert it by turns, each from a cold cache if possible.

    Args:
        model: its shape.
        precision: bf16 makes weights alone; fp32 adds Adam's moments.
        directory: on the disk to be measured.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    source = SyntheticReader(
        model, precision=precision, optimizer=None if precision == "bf16" else "adam"
    )
    stored = write(directory / "source", source)
    size = sum(path.stat().st_size for path in stored.iterdir()) / 1e9
    grow = directory / "grow.yaml"
    target = {
        "num_layers": model.num_layers + model.num_layers // 4,
        "ffn_hidden_size": model.ffn_size + model.ffn_size // 4,
    }
    grow.write_text(yaml.safe_dump({"model": target, "grow": _GROW}))
    conversions = {
        "reshard, same layout": ["reshard"],
        "reshard to TP4 PP2": ["reshard", *_LAYOUT],
        "grow depth and ffn by 1/4": ["grow", "--grow", str(grow), *_LAYOUT[:2]],
    }
    cold = _drop_caches()
    copies = [_copy(stored, directory / "copy")]
    turns = {}
    for name, (verb, *options) in conversions.items():
        turns[name] = _convert(verb, stored, directory / "converted", options)
        copies.append(_copy(stored, directory / "copy"))
    rows = [["cp, then sync", f"{size:.2f}", _range(copies), _rates(size, copies), "", "", ""]]
    ratios = {}
    for (name, turn), before, after in zip(turns.items(), copies, copies[1:], strict=False):
        rate, of_copy = turn.gigabytes / turn.seconds, 2 * size / (before + after)
        ratios[name] = rate / of_copy
        rows.append(
            [
                name,
                f"{turn.gigabytes:.2f}",
                f"{turn.seconds:.1f}",
                f"{rate:.2f}",
                f"{ratios[name]:.0%}",
                f"{turn.verify_seconds:.1f}",
                f"{turn.peak / 2**30:.2f}",
            ]
        )
    shutil.rmtree(directory)
    return Report(
        f"Conversions of {size:.1f} GB ({precision}), {'cold' if cold else 'warm'} cache",
        ["", "GB written", "s", "GB/s", "of cp around it", "verified in s", "peak GiB"],
        rows,
        {
            "gigabytes": size,
            "copy_seconds": copies,
            "turns": {name: vars(turn) for name, turn in turns.items()},
            "ratios": ratios,
            "cold": cold,
        },
    )


_GROW = {"depth": "copying_stack", "ffn": "fpi"}
_LAYOUT = ["--tensor-model-parallel-size", "4", "--pipeline-model-parallel-size", "2"]


def _copy(source: Path, target: Path) -> float:
    """Seconds of a copy that is on disk."""
    _drop_caches()
    began = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    os.sync()
    seconds = time.perf_counter() - began
    shutil.rmtree(target)
    return seconds


def _convert(verb: str, source: Path, target: Path, options: list[str]) -> Turn:
    _drop_caches()
    command = [sys.executable, str(_TOOL), verb, str(source), str(target), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    found = _TOLD.search(said)
    if process.returncode or found is None:
        raise RuntimeError(f"{verb} failed")
    shutil.rmtree(target)
    gigabytes, seconds, verify_seconds = map(float, found.groups())
    return Turn(gigabytes, seconds, verify_seconds, usage.ru_maxrss * 1024)


def _drop_caches() -> bool:
    """Forget what files held, as far as this process may; whether it could."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return True
    return False


def _range(seconds: list[float]) -> str:
    return f"{min(seconds):.1f} - {max(seconds):.1f}"


def _rates(size: float, seconds: list[float]) -> str:
    return f"{size / max(seconds):.2f} - {size / min(seconds):.2f}"
