"""What share of its peak a GPU is taken to reach, and who says so."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_grow.config.model import ModelConfig
from megatron_grow.cost.parameters import count_parameters
from megatron_grow.inputs.errors import UserError

ASSUMED = 0.4
"""What published runs of 1 to 30 billion parameters reach on A100 and H100 without fp8."""


@dataclass(frozen=True)
class Efficiency:
    """A share of the peak of bf16, and where it comes from."""

    share: float
    source: str


@dataclass(frozen=True)
class Measured:
    """Rows of ``tools/benchmark.py gpu``: what one GPU reached, by depth and size of the model."""

    path: Path
    device: str
    """Its name."""
    rows: list[dict[str, Any]]

    def of(self, model: ModelConfig) -> Efficiency:
        """That of the row of a like depth (none, one layer, more) nearest in parameters.

        Raises:
            UserError: no row of such a depth.
        """

        def depth(layers: int) -> int:
            return min(layers, 2)

        alike = [row for row in self.rows if depth(row["layers"]) == depth(model.num_layers)]
        if not alike:
            raise UserError(
                f"--measured {self.path} has no speed of a model of {model.num_layers} layers or "
                "of a like depth (none, one, more); measure one, or leave --measured out"
            )
        size = math.log(count_parameters(model))
        row = min(alike, key=lambda row: abs(math.log(row["parameters"]) - size))
        share = row["mfu"]
        if row.get("recompute") and row["layers"]:
            share *= 4 / 3  # of four passes of a layer, model FLOPs count three
        what = f"{row['shape']}, {row['layers']} layers"
        return Efficiency(share, f"measured on {self.device}: {what}")


def read_measured(path: Path) -> Measured:
    """What ``tools/benchmark.py gpu`` has written.

    Raises:
        UserError: not there, or nothing of that kind.
    """
    try:
        values = json.loads(path.read_text())
        rows = [row for row in values["parts"]["speed"].values() if row.get("mfu")]
        device = str(values["device"]["name"])
    except OSError as error:
        raise UserError(f"--measured {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"--measured {path} is not gpu.json as tools/benchmark.py gpu writes it"
        ) from None
    return Measured(path, device, rows)
