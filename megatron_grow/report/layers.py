"""The sizes of a run's layers over its steps, from its rows; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_grow.inputs.errors import UserError
from megatron_grow.report.runs import Growth, growths_of
from megatron_grow.train.rows import FILE_NAME, read_rows

RELATIVE = "update / weight"
"""The size of an update by that of the weights that it changed."""


@dataclass(frozen=True)
class Curves:
    """A number of each layer, or of one place outside of the layers."""

    name: str
    """Of the tensor, without the prefix that all layers have; or of the place."""
    values: NDArray[np.float64]
    """(rows, layers), or (rows,); NaN where a layer was not there or a number not finite."""
    dying: Mapping[int, int]
    """The step at which a layer was told to die, by its number."""

    @property
    def of_layers(self) -> bool:
        """Whether there is one for each layer."""
        return self.values.ndim == 2


@dataclass(frozen=True)
class LayerHistory:
    """What the rows of a run's layers say."""

    steps: NDArray[np.int64]
    """(rows,)."""
    depths: NDArray[np.int64]
    """(rows,): layers of the model."""
    quantities: dict[str, list[Curves]]
    """By quantity; those of matrices and of norms' gains, without biases."""
    growths: list[Growth]


def load_layers(output_dir: Path) -> LayerHistory:
    """Read the rows of the run that wrote to ``output_dir``.

    Raises:
        UserError: not a run, or one without rows of layers.
    """
    if not output_dir.is_dir():
        raise UserError(f"{output_dir} is not a directory; give the output_dir of a run")
    path = output_dir / FILE_NAME
    rows = read_rows(path)
    layers = [row for row in rows if row.get("event") == "layers"]
    if not layers:
        raise UserError(f"{path} has no rows of layers; train with train.layers_interval above 0")
    told = [row for row in rows if row.get("event") == "dying_layers"]
    try:
        return LayerHistory(
            steps=np.array([row["step"] for row in layers]),
            depths=np.array([row["num_layers"] for row in layers]),
            quantities=_quantities(layers, _dying(told)),
            growths=growths_of(rows),
        )
    except KeyError as error:
        raise UserError(f"{path} has a row without the field {error}") from error


def _dying(told: list[dict[str, Any]]) -> dict[tuple[str, str], dict[int, int]]:
    """By signal and key."""
    dying: dict[tuple[str, str], dict[int, int]] = {}
    for row in told:
        for found in row["found"]:
            steps = dying.setdefault((found["signal"], found["key"]), {})
            steps.update(dict.fromkeys(found["layers"], row["step"]))
    return dying


def _quantities(
    rows: list[dict[str, Any]], dying: dict[tuple[str, str], dict[int, int]]
) -> dict[str, list[Curves]]:
    depth = max(row["num_layers"] for row in rows)

    def curves(quantity: str, names: list[str], signal: str = "") -> list[Curves]:
        return [
            Curves(
                _short(name), _values(rows, quantity, name, depth), dying.get((signal, name), {})
            )
            for name in names
        ]

    matrices = [name for name in _names(rows, "weight") if not name.endswith("bias")]
    weights, updates = curves("weight", matrices), curves("update", matrices, "update")
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = [
            Curves(each.name, each.values / weight.values, each.dying)
            for each, weight in zip(updates, weights, strict=True)
        ]
    return {
        "weight": weights,
        "gain": curves("gain", _names(rows, "gain"), "gain"),
        RELATIVE: relative,
        "gradient": curves("gradient", matrices),
        "activation": curves("activation", _names(rows, "activation")),
        "entropy": curves("entropy", _names(rows, "entropy")),
    }


def _names(rows: list[dict[str, Any]], quantity: str) -> list[str]:
    return sorted({name for row in rows for name in row[quantity]})


def _short(name: str) -> str:
    return name.rpartition(".layers.")[2].removesuffix(".weight").removesuffix("_weight")


def _values(
    rows: list[dict[str, Any]], quantity: str, name: str, depth: int
) -> NDArray[np.float64]:
    found = [row[quantity].get(name) for row in rows]
    if not any(isinstance(value, list) for value in found):
        return np.array([np.nan if value is None else value for value in found], dtype=float)
    values = np.full((len(rows), depth), np.nan)
    for row, of_layers in enumerate(found):
        for layer, value in enumerate(of_layers or ()):
            values[row, layer] = np.nan if value is None else value
    return values
