"""A benchmark's result: a small table for people, and all of it for JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.table import Table


@dataclass
class Report:
    """What was measured, and whether it is what it should be."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    values: dict[str, Any]
    """The numbers behind the rows."""
    machine: dict[str, Any] = field(default_factory=lambda: machine())

    def table(self) -> Table:
        """For the console."""
        table = Table(title=self.title, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def machine() -> dict[str, Any]:
    """Where and when it was measured."""
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {name.strip(): value.strip() for name, value in fields.items()}
    bf16 = [name for name in ("avx512_bf16", "amx_bf16") if name in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.processor())}, {' '.join(bf16) or 'no bf16 units'}"
