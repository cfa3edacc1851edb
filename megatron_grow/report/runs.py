"""What a run measured and what it had cost, from its metrics; nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.run import RESOLVED, RunConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.strict_yaml import read_yaml
from megatron_grow.train.rows import FILE_NAME, read_rows

Cost = Literal["flops_total", "flops_block"]
COSTS: tuple[Cost, ...] = ("flops_total", "flops_block")
"""FLOPs of the whole model, and of the transformer layers alone."""


@dataclass(frozen=True)
class Growth:
    """A change of the model after ``step`` steps."""

    step: int
    from_layers: int
    to_layers: int
    what: str
    """``0 -> 4 layers, 128 -> 192 ffn_hidden_size``."""


@dataclass(frozen=True)
class Run:
    """The evaluations of a run, in order, and what they had cost."""

    output_dir: Path
    steps: NDArray[np.int64]
    """(evaluations,); a growth has two, before and after."""
    numbers: dict[str, NDArray[np.float64]]
    """(evaluations,) each: ``loss``, parts of it, and metrics such as ``masked_lm_accuracy``. NaN
    where a number was not finite or not there, and last of all where the run diverged."""
    flops: dict[Cost, NDArray[np.float64]]
    """(evaluations,) each; since the start of the run."""
    tokens: int
    """Training tokens consumed up to the last evaluation."""
    growths: list[Growth]
    wall_seconds: float
    """Training steps and growths; evaluation, checkpoints and restarts are not in it."""
    diverged_at: int | None
    """The step from which on its numbers were not finite; None for a sound run."""
    skipped_iters: int
    """Steps without an update, because loss or gradients were not finite."""
    config: dict[str, Any]
    """The whole run file, as the run has recorded it; empty where it has not."""

    @property
    def val_loss(self) -> NDArray[np.float64]:
        """All that is trained on; (evaluations,)."""
        return self.numbers["loss"]

    @property
    def last_step(self) -> int:
        """Of its last evaluation."""
        return int(self.steps[-1])

    @property
    def asked_steps(self) -> int:
        """Steps of the whole run; of one without a record those that it has done."""
        return int(self.config["train"]["train_iters"]) if self.config else self.last_step

    @property
    def seed(self) -> int | None:
        """None for a run without a record."""
        return self.config["run"]["seed"] if self.config else None

    @property
    def constant_until(self) -> int:
        """The last step at which the rate stands at its peak; 0 where it never does, or is not
        known."""
        if not self.config or self.config["schedule"]["lr_decay_style"] not in ("WSD", "constant"):
            return 0
        schedule, steps = self.config["schedule"], self.asked_steps
        until = steps - schedule.get("cooldown_iters", 0)
        if schedule["lr_decay_style"] == "WSD":
            laid_out = schedule.get("lr_decay_iters") or steps
            until = min(until, laid_out - round(schedule["lr_wsd_decay_fraction"] * laid_out))
        return until


def load_run(output_dir: Path) -> Run:
    """Read the metrics of the run that wrote to ``output_dir``.

    FLOPs and tokens at an evaluation that fell between two logged steps are interpolated.

    Raises:
        UserError: not a run, or without the rows that a comparison needs.
    """
    if not output_dir.is_dir():
        raise UserError(f"{output_dir} is not a directory; give the output_dir of a run")
    path = output_dir / FILE_NAME
    rows = read_rows(path)
    train = [row for row in rows if "loss" in row]
    growth = [row for row in rows if row.get("event") == "growth"]
    diverged_at = _diverged_at(rows)
    if not train:
        how = (
            "" if diverged_at is None else f": it diverged at step {diverged_at}, before the first"
        )
        raise UserError(f"{path} has no training rows{how}")
    steps, numbers = _evaluations(rows, growth, diverged_at)
    if not len(steps):
        raise UserError(f"{path} has no evaluation rows; train with train.eval_iters above 0")
    try:
        return Run(
            output_dir=output_dir,
            steps=steps,
            numbers=numbers,
            flops={cost: _spent_at(steps, rows, cost) for cost in COSTS},
            tokens=round(_spent_at(steps, rows, "consumed_tokens")[-1]),
            growths=growths_of(rows),
            wall_seconds=_wall_seconds(train, growth),
            diverged_at=diverged_at,
            skipped_iters=len(_skipped(rows)),
            config=_config(output_dir / RESOLVED),
        )
    except KeyError as error:
        raise UserError(f"{path} has a row without the field {error}") from error


def _config(path: Path) -> dict[str, Any]:
    """The recorded run file; empty where there is none."""
    if not path.exists():
        return {}
    config = read_yaml(path, "the record")
    try:
        config["run"]["seed"], config["train"]["train_iters"], config["schedule"]["lr_decay_style"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no run file that a run has recorded: {error!r}") from None
    return _completed(config)


def _completed(record: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of fields that came after the run: without them it did as they do."""
    stages = [
        {
            **asdict(StageSection()),
            **stage,
            "grow": stage.get("grow") and {**asdict(GrowSection()), **stage["grow"]},
        }
        for stage in record.get("stages", [])
    ]
    defaults = asdict(RunConfig())
    sections = {
        name: {**defaults[name], **record.get(name, {})} for name in defaults.keys() - {"stages"}
    }
    return {**sections, "stages": stages}


def _evaluations(
    rows: list[dict[str, Any]], growth: list[dict[str, Any]], diverged_at: int | None
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Steps and numbers of all evaluations; at a growth, those of its own row if it has both."""
    measured = {
        row["step"]: row
        for row in growth
        if row.get("val_loss_before") is not None and row.get("val_loss_after") is not None
    }
    points = [
        (row["step"], _measured(row))
        for row in rows
        if "val_loss" in row and row["step"] not in measured
    ]
    points += [
        (step, _measured(row, when))
        for step, row in measured.items()
        for when in ("_before", "_after")
    ]
    if diverged_at is not None:
        points = [point for point in points if point[0] <= diverged_at]
        points.append((diverged_at, {}))
    points.sort(key=lambda point: point[0])  # stable: before stays before after
    steps = np.array([step for step, _ in points], dtype=np.int64)
    names = dict.fromkeys(["loss", *(name for _, found in points for name in found)])
    return steps, {
        name: np.array([found.get(name, math.nan) for _, found in points]) for name in names
    }


def _measured(row: dict[str, Any], when: str = "") -> dict[str, float]:
    """An evaluation's finite numbers, by name; ``when``: those of a growth before or after it."""
    return {
        name.removeprefix("val_").removesuffix(when): value
        for name, value in row.items()
        if name.startswith("val_") and name.endswith(when) and value is not None
    }


def _skipped(rows: list[dict[str, Any]]) -> set[int]:
    """The steps that made no update and did not end the run."""
    skips = (row for row in rows if row.get("event") == "not_finite" and row["action"] == "skip")
    return {row["step"] for row in skips}


def _diverged_at(rows: list[dict[str, Any]]) -> int | None:
    """Where the run says that it stopped, or the first loss after which none is finite."""
    skipped, found = _skipped(rows), None
    for row in rows:
        stops = row.get("event") == "not_finite" and row["action"] == "stop"
        losses = [row[name] for name in ("loss", "val_loss") if name in row]
        sound = all(loss is not None and math.isfinite(loss) for loss in losses)
        if stops or not (sound or row["step"] in skipped):
            found = row["step"] if found is None else found
        elif losses and sound:
            found = None
    return found


def _spent_at(
    steps: NDArray[np.int64], rows: list[dict[str, Any]], cost: Cost | Literal["consumed_tokens"]
) -> NDArray[np.float64]:
    known = {0: 0.0} | {row["step"]: float(row[cost]) for row in rows if cost in row}
    if len(known) == 1:
        raise KeyError(cost)
    knots = sorted(known)
    return np.interp(steps, knots, [known[step] for step in knots])


def growths_of(rows: list[dict[str, Any]]) -> list[Growth]:
    """From the growth rows; in a log without them, from the depths of the training rows.

    A stage that changed the layout or the batch alone is none.
    """
    changes = [row for row in rows if row.get("event") == "growth"] or [
        {**before, "from_layers": before["num_layers"], "to_layers": after["num_layers"]}
        for before, after in pairwise(row for row in rows if "loss" in row)
    ]
    found = (
        Growth(row["step"], row["from_layers"], row["to_layers"], _what(row)) for row in changes
    )
    return [growth for growth in found if growth.what]


def _what(row: dict[str, Any]) -> str:
    """What grew, without the operators; empty if nothing did."""
    if "summary" not in row:
        deeper = row["from_layers"] != row["to_layers"]
        return f"{row['from_layers']} -> {row['to_layers']} layers" if deeper else ""
    changes = [part for part in row["summary"].split("; ") if part != "the same model"]
    sizes = [part for part in changes if "->" in part] or changes
    return ", ".join(each.split(" by ")[0] for part in sizes for each in part.split(", "))


def _wall_seconds(train: list[dict[str, Any]], growth: list[dict[str, Any]]) -> float:
    ends = [0] + [row["step"] for row in train]
    stepping = sum(
        row["step_time"] * (row["step"] - start) for start, row in zip(ends, train, strict=False)
    )
    return stepping + sum(row["pause_seconds"] for row in growth)
